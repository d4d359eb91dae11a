"""The three steps of a measurement: load the data, embed them with a checkpoint, run the protocols."""

import csv
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

from ..package_files import find_file
from .arguments import DataArguments, EvaluationArguments
from .benchmarks import open_benchmark
from .encoder import Encoder, load_checkpoint
from .evaluation_set import EvaluationSet, load_evaluation_set
from .report import CENTRED
from .suite import EmbeddedSets, Figures, Protocol, centered, embed
from .zero_shot import BaselineLine, fit_line


@dataclass(frozen=True)
class EvaluationData:
    """The measured set, its reference images, its shifts, and the shifts' baseline lines by name."""

    test: EvaluationSet
    train: EvaluationSet | None
    shifts: list[EvaluationSet]
    lines: dict[str, BaselineLine]


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


def _read_templates(name: str) -> list[str]:
    path = find_file(name, "training/recipes/comparisons", ".txt", "file of templates")
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


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
