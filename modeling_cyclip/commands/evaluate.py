"""Measures the checkpoint of a CLIP, or of another dual encoder.

cyclip evaluate --model_name_or_path OUT --dataset cifar10 --output_dir results
cyclip evaluate --model_name_or_path OUT --dataset cifar10 --tasks all --output_dir results --num_processes 8
"""

import logging
import sys
import time
from pathlib import Path

from accelerate import PartialState

from ..arguments import parse_with_config
from ..evaluation.arguments import DataArguments, EvaluationArguments
from ..evaluation.embeddings import embed_all
from ..evaluation.evaluation_set import load_data
from ..evaluation.plots import draw_pictures
from ..evaluation.protocols import choose_protocols, measure, with_checked_references
from ..evaluation.report import MINUS, differences, results_json, write_report
from ..evaluation.setting import limits, measurement


logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    about = "Measure the checkpoint of a CLIP, or of another dual encoder."
    data_args, args = parse_with_config((DataArguments, EvaluationArguments), argv, about)
    state = PartialState()
    start = time.perf_counter()
    failed: dict[str, str] = {}
    try:
        with state.main_process_first():
            data = load_data(data_args, args.baseline_points)
        protocols = choose_protocols(args.tasks, data, failed)
        data = with_checked_references(data, protocols)
        checkpoints = [name for name in (args.model_name_or_path, args.compare_to) if name is not None]
        embedded = [embed_all(checkpoint, data, args, state) for checkpoint in checkpoints]
    except ValueError as error:
        sys.exit(f"error: {error}")
    if not state.is_main_process:
        return
    output_dir = Path(args.output_dir)
    if (output_dir / "results.json").is_file():
        logger.warning(
            f"The results of an earlier evaluation in {output_dir} are replaced. Pictures that results.md does not name are its."
        )
    figures = [measure(one, protocols, args.center, failed) for one in embedded]
    failures = "; ".join(f"{task}: {reason}" for task, reason in failed.items())
    if not any(figures):
        sys.exit(f"error: {failures}")
    tables = dict(zip(checkpoints, figures, strict=True))
    if args.compare_to is not None:
        tables[MINUS.join(checkpoints)] = differences(*figures)

    data = embedded[0].data
    pictures = draw_pictures(embedded[0], output_dir / "plots", args.seed) if args.plots else []
    fingerprints = {name: one.fingerprint for name, one in zip(checkpoints, embedded, strict=True)}
    header = measurement(data_args, args, data, fingerprints, state.device, state.num_processes)
    header |= {"failed": failed, "seconds": round(time.perf_counter() - start, 1)}
    tables = {heading: results_json(results, args.seed, limits(data)) for heading, results in tables.items()}
    print(f"\n{data.name}\n\n{write_report(output_dir, header, tables, pictures)}\n")
    if failed:
        sys.exit(
            f"error: {len(failed)} of the tasks failed, the others are in {output_dir / 'results.json'}. {failures}"
        )


if __name__ == "__main__":
    main()
