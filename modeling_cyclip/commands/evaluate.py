"""Measures a CLIP checkpoint.

cyclip evaluate --model_name_or_path OUT --dataset cifar10 --output_dir results
cyclip evaluate --model_name_or_path OUT --dataset cifar10 --tasks all --output_dir results --num_processes 8
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState

from ..arguments import parse_with_config
from ..evaluation.arguments import DataArguments, EvaluationArguments
from ..evaluation.embeddings import embed_all
from ..evaluation.evaluation_set import load_data
from ..evaluation.plots import draw_pictures
from ..evaluation.protocols import choose_protocols, measure
from ..evaluation.report import MINUS, differences, results_json, write_report


def main(argv: list[str] | None = None) -> None:
    data_args, args = parse_with_config((DataArguments, EvaluationArguments), argv, "Measure a CLIP checkpoint.")
    state = PartialState()
    start = time.perf_counter()
    try:
        with state.main_process_first():
            data = load_data(data_args, args.baseline_points)
        protocols = choose_protocols(args.tasks, data)
        if not any("train" in protocol.needs for protocol in protocols.values()):
            data = replace(data, train=None)
        checkpoints = [name for name in (args.model_name_or_path, args.compare_to) if name is not None]
        embedded = [embed_all(checkpoint, data, args, state) for checkpoint in checkpoints]
        if not state.is_main_process:
            return
        figures = [measure(one, protocols, args.center) for one in embedded]
        tables = dict(zip(checkpoints, figures, strict=True))
        if args.compare_to is not None:
            tables[MINUS.join(checkpoints)] = differences(*figures)
    except ValueError as error:
        sys.exit(f"error: {error}")

    output_dir = Path(args.output_dir)
    pictures = draw_pictures(embedded[0], output_dir / "plots", args.seed) if args.plots else []
    header = {
        "data": data.name,
        "metric of the paper": data.benchmark.metric,
        "precision": args.dtype,
        "seed": args.seed,
        "seconds": round(time.perf_counter() - start, 1),
    }
    tables = {heading: results_json(results, args.seed) for heading, results in tables.items()}
    print(f"\n{data.name}\n\n{write_report(output_dir, header, tables, pictures)}\n")


if __name__ == "__main__":
    main()
