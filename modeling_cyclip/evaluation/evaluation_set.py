"""From the rows of a dataset to what is measured: images, labels, class names, captions, superclasses."""

import csv
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from datasets import ClassLabel, Dataset, Image, List, interleave_datasets
from torch import Tensor

from ..data.columns import MISSING_LABELS, TEXT, check_column, only_images
from ..package_files import find_file
from .arguments import DataArguments
from .benchmarks import Benchmark, open_benchmark
from .zero_shot import BaselineLine, fit_line


logger = logging.getLogger(__name__)

# For data that brings no templates of its own.
GENERAL_TEMPLATES = ["a photo of a {}.", "a photo of the {}.", "a picture of a {}.", "an image of the {}."]


@dataclass(frozen=True)
class EvaluationSet:
    """One split, ready to be embedded, and the splits that its protocols use beside it."""

    name: str  # dataset and split
    dataset: Dataset  # images undecoded, in the column `image`
    labels: Tensor | None
    class_names: list[str] | None
    templates: list[str]
    captions: list[list[str]] | None  # of each row
    superclasses: Tensor | None  # of each class
    is_winoground: bool  # whether rows 2i and 2i + 1 are the images and captions of one example of Winoground
    benchmark: Benchmark
    train: "EvaluationSet | None" = None  # reference images
    shifts: "Sequence[EvaluationSet]" = ()  # natural distribution shifts
    baseline_line: BaselineLine | None = None  # of a shifted set: the accuracy to expect on it


def load_data(args: DataArguments, baseline_points: str | None) -> EvaluationSet:
    """The measured set with its reference images and its shifts, not yet embedded."""
    benchmark = open_benchmark(args.dataset)
    split, train_split = args.split or benchmark.split, args.train_split or benchmark.train_split
    templates = None
    if args.templates is not None:
        path = find_file(args.templates, "training/recipes/comparisons", ".txt", "file of templates")
        templates = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    # With a string label column, all these splits share their classes.
    splits = [split, *args.shift_splits, *args.class_splits, *([train_split] if train_split else [])]

    def load(split: str, labels_only: bool = True) -> EvaluationSet:
        return load_evaluation_set(benchmark, split, args, templates, splits, labels_only)

    data = load(split, labels_only=False)
    train = load(train_split) if train_split else None
    shifts = [load(shifted) for shifted in args.shift_splits]
    for name in args.shift_datasets:
        shifted, line = open_benchmark(name), None
        if shifted.baseline_line and open_benchmark(shifted.shift_of) == benchmark:
            line = BaselineLine(*shifted.baseline_line)
        shift = load_evaluation_set(shifted, shifted.split, args, templates, labels_only=True)
        shifts.append(replace(shift, baseline_line=line))
    if baseline_points is not None:
        if len(shifts) != 1:
            raise ValueError(f"--baseline_points are of one shifted set, but there are {len(shifts)}.")
        shifts = [replace(shifts[0], baseline_line=fit_line(_read_points(baseline_points)))]
    return replace(data, train=train, shifts=shifts)


def load_evaluation_set(
    benchmark: Benchmark,
    split: str,
    args: DataArguments,
    templates: list[str] | None = None,
    class_splits: Iterable[str] = (),
    labels_only: bool = False,
) -> EvaluationSet:
    """
    One split of a benchmark. Where `args` name no column, the one that fits is taken: the only image column; `label`,
    `cls`, or the only ClassLabel column; `captions`, `caption` or `txt`. Superclasses have to be asked for.

    `templates` replace the benchmark's own. With a string label column, its distinct values in `split` and in the
    `class_splits` are the classes. `labels_only` leaves out captions and superclasses, which reference images and shifted
    sets have no use for.
    """
    dataset = _without(benchmark.load(split), args.exclude)
    name = f"{benchmark.path} [{split}]"
    if len(dataset) == 0:
        raise ValueError(f"{name} has no rows{' after --exclude' if args.exclude else ''}.")
    is_winoground = {"image_0", "image_1", "caption_0", "caption_1"} <= set(dataset.column_names)
    if is_winoground:
        dataset = _in_single_file(dataset)
    coarse_column = None if labels_only else args.coarse_column
    label_column = args.label_column or _default_label(dataset)
    labels = class_names = superclasses = None
    if label_column is not None:
        check_column(dataset, label_column, "--label_column")
        pooled = {split: dataset}
        if dataset.features[label_column] in TEXT or coarse_column:
            for other in class_splits:
                if other not in pooled:
                    pooled[other] = _without(benchmark.load(other), args.exclude)
        class_names, rows = _classes(pooled, label_column, benchmark.class_names(split))
        labels = torch.tensor(rows[split])
        if coarse_column is not None:
            superclasses = _superclasses(pooled, rows, class_names, coarse_column)
    return EvaluationSet(
        name=name,
        dataset=_with_images(dataset, args.image_column, benchmark.path),
        labels=labels,
        class_names=class_names,
        templates=templates or benchmark.templates(split) or GENERAL_TEMPLATES,
        captions=None if labels_only else _captions(dataset, args.caption_column),
        superclasses=superclasses,
        is_winoground=is_winoground,
        benchmark=benchmark,
    )


def _read_points(path: str) -> list[tuple[float, float]]:
    try:
        with open(path, newline="") as file:
            return [(float(accuracy), float(shifted)) for accuracy, shifted in csv.reader(file)]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} must have two numbers a line, accuracies in percent, and no heading: {error}"
        ) from error


def _in_single_file(dataset: Dataset) -> Dataset:
    """Turns Winoground's rows of two images and two captions into two rows with one of each."""
    halves = [
        dataset.select_columns([f"image_{half}", f"caption_{half}"]).rename_columns(
            {f"image_{half}": "image", f"caption_{half}": "caption"}
        )
        for half in (0, 1)
    ]
    return interleave_datasets(halves)


def _without(dataset: Dataset, exclude: str | None) -> Dataset:
    if exclude is None:
        return dataset
    column, separator, values = exclude.partition("=")
    if not separator:
        raise ValueError(f"--exclude takes column=value,value, got {exclude!r}.")
    check_column(dataset, column, "--exclude")
    unwanted = set(values.split(","))
    present = dataset[column][:]
    if isinstance(feature := dataset.features[column], ClassLabel):
        if unknown := unwanted - set(feature.names):
            raise ValueError(
                f"--exclude: column '{column}' has no value {min(unknown)!r}, but {', '.join(feature.names)}."
            )
        present = feature.int2str(present)
    return dataset.select([row for row, value in enumerate(present) if str(value) not in unwanted])


def _with_images(dataset: Dataset, column: str | None, path: str) -> Dataset:
    if column is None:
        candidates = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
        if len(candidates) != 1:
            found = ", ".join(candidates) or f"none among {', '.join(dataset.column_names)}"
            raise ValueError(f"One image column is needed, found {found}. Say which with --image_column.")
        column = candidates[0]
    check_column(dataset, column, "--image_column")
    return only_images(dataset, column, path if Path(path).is_dir() else None)


def _default_label(dataset: Dataset) -> str | None:
    for column in ("label", "cls"):
        if column in dataset.column_names:
            return column
    candidates = [name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    return candidates[0] if len(candidates) == 1 else None


def _classes(
    datasets: dict[str, Dataset], column: str, names: list[str] | None
) -> tuple[list[str], dict[str, list[int]]]:
    """Class names, and the labels of every split."""
    feature = next(iter(datasets.values())).features[column]
    rows = {split: dataset[column][:] for split, dataset in datasets.items()}
    for split, labels in rows.items():
        if missing := [row for row, label in enumerate(labels) if label in MISSING_LABELS]:
            raise ValueError(f"Row {missing[0]} of the split {split} has no label in column '{column}'.")
    if feature in TEXT:
        names = sorted({value for values in rows.values() for value in values})
        index = {name: label for label, name in enumerate(names)}
        return names, {split: [index[value] for value in values] for split, values in rows.items()}
    if names is None:
        if not isinstance(feature, ClassLabel):
            raise ValueError(
                f"Column '{column}' has labels without names: it is not a ClassLabel column, and there is no classnames.txt "
                "beside the data."
            )
        # Identifiers have underscores where a caption has spaces.
        names = [name.replace("_", " ") for name in feature.names]
    return names, rows


def _superclasses(
    datasets: dict[str, Dataset], rows: dict[str, list[int]], class_names: list[str], column: str
) -> Tensor:
    """Superclass of each class, which all of its rows must share."""
    superclass = {}
    for split, dataset in datasets.items():
        check_column(dataset, column, "--coarse_column")
        for label, value in zip(rows[split], dataset[column][:], strict=True):
            if superclass.setdefault(label, value) != value:
                raise ValueError(f"Class '{class_names[label]}' has rows of two superclasses in column '{column}'.")
    if missing := [name for label, name in enumerate(class_names) if label not in superclass]:
        raise ValueError(f"Class '{missing[0]}' is empty: it has no row that would say its superclass ('{column}').")
    index = {value: number for number, value in enumerate(sorted(set(superclass.values())))}
    return torch.tensor([index[superclass[label]] for label in range(len(class_names))])


def _captions(dataset: Dataset, column: str | None) -> list[list[str]] | None:
    if column is None:
        column = next((name for name in ("captions", "caption", "txt") if name in dataset.column_names), None)
        if column is None:
            return None
        try:
            return _captions(dataset, column)
        # The captions were not asked for, so that a fault in them must not end the run.
        except ValueError as error:
            logger.warning(f"Captions are left out: {error}")
            return None
    check_column(dataset, column, "--caption_column")
    feature = dataset.features[column]
    if not (feature in TEXT or (isinstance(feature, List) and feature.feature in TEXT)):
        raise ValueError(f"Column '{column}' holds no captions (text or lists of texts). Set --caption_column.")
    rows = [row.split("\n") if isinstance(row, str) else row or [] for row in dataset[column]]
    captions = [[caption.strip() for caption in row if caption and caption.strip()] for row in rows]
    if empty := [row for row, texts in enumerate(captions) if not texts]:
        raise ValueError(f"Row {empty[0]} has no caption in column '{column}'.")
    return captions
