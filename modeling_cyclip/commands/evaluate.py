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
from ..evaluation.plots import draw_pictures
from ..evaluation.report import MINUS, differences, results_json, write_report
from ..evaluation.steps import embed_all, load_data, run_protocols
from ..evaluation.suite import choose_protocols


def main(argv: list[str] | None = None) -> None:
    data_args, args = parse_with_config((DataArguments, EvaluationArguments), argv, "Measure a CLIP checkpoint.")
    state = PartialState()
    start = time.perf_counter()
    try:
        with state.main_process_first():
            data = load_data(data_args, args.baseline_points)
        protocols = choose_protocols(args.tasks, data.test, data.train, data.shifts)
        if not any("train" in protocol.needs for protocol in protocols.values()):
            data = replace(data, train=None)
        sets = embed_all(args.model_name_or_path, data, args, state)
        compared_sets = None if args.compare_to is None else embed_all(args.compare_to, data, args, state)
        if not state.is_main_process:
            return
        tables = {f"{args.model_name_or_path}": run_protocols(protocols, sets, args.center)}
        if compared_sets is not None:
            compared = run_protocols(protocols, compared_sets, args.center)
            tables[args.compare_to] = compared
            tables[f"{args.model_name_or_path}{MINUS}{args.compare_to}"] = differences(
                tables[args.model_name_or_path], compared
            )
    except ValueError as error:
        sys.exit(f"error: {error}")

    output_dir = Path(args.output_dir)
    pictures = draw_pictures(sets.test, output_dir / "plots", args.seed) if args.plots else []
    header = {
        "data": data.test.name,
        "metric of the paper": data.test.benchmark.metric,
        "precision": args.dtype,
        "seed": args.seed,
        "seconds": round(time.perf_counter() - start, 1),
    }
    tables = {heading: results_json(results, args.seed) for heading, results in tables.items()}
    print(f"\n{data.test.name}\n\n{write_report(output_dir, header, tables, pictures)}\n")


if __name__ == "__main__":
    main()
