"""Measures a CLIP checkpoint.

python evaluation/run_evaluation.py --model_name_or_path OUT --dataset ../shared/data/cifar10 --output_dir results
accelerate launch evaluation/run_evaluation.py --model_name_or_path OUT --dataset cifar10 --tasks all --output_dir results
"""

import csv
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import PartialState
from transformers import HfArgumentParser

from evaluation.arguments import DataArguments, EvaluationArguments
from evaluation.benchmarks import open_benchmark
from evaluation.centring import CENTRED
from evaluation.encoder import Encoder, load_checkpoint
from evaluation.evaluation_set import EvaluationSet, load_evaluation_set
from evaluation.pictures import draw_pictures
from evaluation.report import MINUS, differences, results_json, write_report
from evaluation.shift import BaselineLine, fit_line
from evaluation.suite import EmbeddedSets, Figures, Protocol, centered, choose_protocols, embed


@dataclass(frozen=True)
class EvaluationData:
    """The measured set, its reference images, its shifts, and the shifts' baseline lines by name."""

    test: EvaluationSet
    train: EvaluationSet | None
    shifts: list[EvaluationSet]
    lines: dict[str, BaselineLine]


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser((DataArguments, EvaluationArguments), description="Measure a CLIP checkpoint.")
    data_args, args, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        sys.exit(f"error: there is no argument {unknown[0]}; --help lists those that there are.")
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


def load_data(args: DataArguments, baseline_points: str | None) -> EvaluationData:
    """Everything that is measured, not yet embedded."""
    benchmark = open_benchmark(args.dataset)
    split, train_split = args.split or benchmark.split, args.train_split or benchmark.train_split
    templates = None
    if args.templates is not None:
        templates = _read_templates(args.templates)
    # With a string label column, all these splits share their classes.
    splits = [split, *args.shift_splits, *args.class_splits, *([train_split] if train_split else [])]

    def load(split: str, labels_only: bool) -> EvaluationSet:
        return load_evaluation_set(benchmark, split, args.columns, templates, splits, labels_only)

    test = load(split, labels_only=False)
    train = load(train_split, labels_only=True) if train_split else None
    shifts, lines = [load(shifted, labels_only=True) for shifted in args.shift_splits], {}
    for name in args.shift_datasets:
        shifted = open_benchmark(name)
        shifts.append(load_evaluation_set(shifted, shifted.split, args.columns, templates, labels_only=True))
        if shifted.baseline_line and open_benchmark(shifted.shift_of) == benchmark:
            lines[shifts[-1].name] = BaselineLine(*shifted.baseline_line)
    if baseline_points is not None:
        if len(shifts) != 1:
            raise ValueError(f"--baseline_points are of one shifted set, but there are {len(shifts)}.")
        lines[shifts[0].name] = fit_line(_read_points(baseline_points))
    return EvaluationData(test, train, shifts, lines)


def _read_templates(path: str) -> list[str]:
    try:
        return [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
    except OSError as error:
        raise ValueError(f"--templates {path} cannot be read: {error}") from error


def _read_points(path: str) -> list[tuple[float, float]]:
    try:
        with open(path, newline="") as file:
            return [(float(accuracy), float(shifted)) for accuracy, shifted in csv.reader(file)]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} must have two numbers a line, accuracies in percent, and no heading: {error}"
        ) from error


def embed_all(checkpoint: str, data: EvaluationData, args: EvaluationArguments, state: PartialState) -> EmbeddedSets:
    """All sets as one checkpoint sees them. Every process must call; only on the main one is there anything in them."""
    model, processor = load_checkpoint(checkpoint, args.dtype, state.device)
    cache_dir = Path(args.output_dir, "embeddings")
    encoder = Encoder(model, processor, cache_dir, args.batch_size, args.num_workers, state)
    test = embed(data.test, encoder)
    train = None if data.train is None else embed(data.train, encoder)
    return EmbeddedSets(test, train, [embed(shifted, encoder) for shifted in data.shifts], data.lines, args.seed)


def run_protocols(protocols: dict[str, Protocol], sets: EmbeddedSets, center: bool) -> dict[str, Figures]:
    """Figures by task, and by `task, centred` where asked for."""
    results = {name: protocol.run(sets) for name, protocol in protocols.items()}
    if center:
        sets = centered(sets)
        results |= {f"{name}{CENTRED}": protocol.run(sets) for name, protocol in protocols.items() if protocol.centred}
    return results


if __name__ == "__main__":
    main()
