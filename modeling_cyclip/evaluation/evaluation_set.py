"""From the rows of a dataset to what is measured: images, labels, class names, captions, superclasses."""

import csv
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, List, Value, interleave_datasets
from torch import Tensor

from ..data.captions import read_captions
from ..data.columns import (
    MISSING_LABELS,
    TEXT,
    caption_candidates,
    check_column,
    describe,
    image_candidates,
    only_images,
)
from ..package_files import find_file
from .arguments import DataArguments
from .benchmarks import Benchmark, open_benchmark, read_templates
from .zero_shot import BaselineLine, fit_line


logger = logging.getLogger(__name__)

# For data that brings no templates of its own.
GENERAL_TEMPLATES = ["a photo of a {}.", "a photo of the {}.", "a picture of a {}.", "an image of the {}."]


@dataclass(frozen=True)
class EvaluationSet:
    """One split, ready to be embedded, and the splits that its protocols use beside it."""

    name: str  # dataset and split
    dataset: Dataset  # images undecoded, in the column `image`
    benchmark: Benchmark
    templates: list[str]
    is_winoground: bool  # whether rows 2i and 2i + 1 are the images and captions of one example of Winoground
    labels: Tensor | None = None
    class_names: list[str] | None = None
    pooled_classes: bool = False  # whether the classes are the distinct values of a string column, over several splits
    superclasses: Tensor | None = None  # of each class
    captions: list[list[str]] | None = None  # of each row
    train: "EvaluationSet | None" = None  # reference images
    shifts: "Sequence[EvaluationSet]" = ()  # natural distribution shifts
    baseline_line: BaselineLine | None = None  # of a shifted set: the accuracy to expect on it
    num_folds: int | None = None  # without a training split: reference images are those of the other folds
    # What is wrong with the data that a protocol needs, by the names of `NEEDS`: only that protocol has to fail.
    problems: dict[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()  # what a reader of the figures should know of the data
    num_broken: int = 0  # images that could not be opened and were left out
    commit: str | None = None  # of a set on the Hub
    # How many of the images are among the reference images, too, and how many of them were looked for.
    shared: tuple[int, int] | None = None


def load_data(args: DataArguments, baseline_points: str | None) -> EvaluationSet:
    """The measured set with its reference images and its shifts, not yet embedded."""
    benchmark = open_benchmark(args.dataset)
    split, train_split = args.split or benchmark.split, _train_split(args, benchmark)
    if benchmark.is_single and (args.split is not None or args.train_split is not None):
        raise ValueError(
            f"{args.dataset} is one file, without splits: leave --split and --train_split out, or give a folder with a file "
            "a split. --cross_validate 5 needs no training split."
        )
    templates = None
    if args.templates is not None:
        path = find_file(args.templates, "training/recipes/comparisons", ".txt", "file of templates")
        templates = read_templates(path)
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
    return replace(data, train=train, shifts=shifts, num_folds=args.cross_validate)


def _train_split(args: DataArguments, benchmark: Benchmark) -> str | None:
    """The split of reference images, if they come from one."""
    if args.cross_validate is None:
        return args.train_split or benchmark.train_split
    if args.train_split is not None:
        raise ValueError(
            "--train_split and --cross_validate both say where reference images come from: take one of them."
        )
    if args.cross_validate < 2:
        raise ValueError(f"--cross_validate takes at least 2 folds, got {args.cross_validate}.")
    return None


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
    `class_splits` are the classes. Classes of which `args.exclude` leaves no row in these splits are no candidates.
    `labels_only` leaves out captions and superclasses, which reference images and shifted sets have no use for.
    """
    whole, folder = benchmark.load(split)
    dataset = _without(whole, args.exclude)
    name = benchmark.path if benchmark.is_single else f"{benchmark.path} [{split}]"
    if len(dataset) == 0:
        raise ValueError(f"{name} has no rows{' after --exclude' if args.exclude else ''}.")
    is_winoground = {"image_0", "image_1", "caption_0", "caption_1"} <= set(dataset.column_names)
    if is_winoground:
        dataset = _in_single_file(dataset)
    label_column = args.label_column or _default_label(dataset)
    coarse_column = None if labels_only else args.coarse_column
    labelled, problems, captions = {}, {}, None
    if label_column is not None:
        options = {"exclude": args.exclude, "label_column": label_column, "coarse_column": coarse_column}
        labelled, problems = _labelled(benchmark, split, whole, dataset, class_splits, **options)
    if not labels_only:
        try:
            captions = _captions(dataset, args.caption_column)
        except _CaptionFault as error:
            problems["captions"] = str(error)
    return EvaluationSet(
        name=name,
        dataset=_with_images(dataset, args.image_column, folder),
        benchmark=benchmark,
        templates=templates or benchmark.templates(split) or GENERAL_TEMPLATES,
        is_winoground=is_winoground,
        captions=captions,
        problems=problems,
        commit=benchmark.commit(whole),
        **labelled,
    )


def _labelled(
    benchmark: Benchmark,
    split: str,
    whole: Dataset,
    dataset: Dataset,
    class_splits: Iterable[str],
    *,
    exclude: str | None,
    label_column: str,
    coarse_column: str | None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields of an [`EvaluationSet`] that are made of its labels, and its problems. `whole` is the set without `exclude`."""
    check_column(dataset, label_column, "--label_column")
    are_names = dataset.features[label_column] in TEXT and not _are_numerals(whole[label_column][:])
    pooled, before = {split: dataset}, {split: whole}
    if are_names or coarse_column or exclude:
        for other in class_splits:
            if other not in pooled:
                before[other], _ = benchmark.load(other)
                pooled[other] = _without(before[other], exclude)
    class_names, rows = _classes(pooled, label_column, benchmark, split, are_names)
    if exclude and not are_names:
        every = (label for part in before.values() for label in part[label_column][:])
        labelled = {int(label) for label in every if not _is_missing(label)}
        class_names, rows = _remaining(class_names, rows, labelled)
    class_names, rows, notes = _of_different_names(class_names, rows)
    superclasses, problems = None, {}
    if coarse_column is not None:
        for part in pooled.values():
            check_column(part, coarse_column, "--coarse_column")
        try:
            superclasses = _superclasses(pooled, rows, class_names, coarse_column, label_column)
        except ValueError as error:
            problems["superclasses"] = str(error)
    found = {"labels": torch.tensor(rows[split]), "class_names": class_names, "superclasses": superclasses}
    return {**found, "pooled_classes": are_names, "notes": notes}, problems


def without_images(data: EvaluationSet, kept: list[int], num_broken: int) -> EvaluationSet:
    """A set with the rows `kept` alone, since the images of `num_broken` others could not be opened."""
    return replace(
        data,
        dataset=data.dataset.select(kept),
        labels=None if data.labels is None else data.labels[kept],
        captions=None if data.captions is None else [data.captions[row] for row in kept],
        num_broken=num_broken,
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
    # A value with a comma stands in quotation marks.
    unwanted = {_spaced(value) for value in next(csv.reader([values]))}
    present = dataset[column][:]
    if isinstance(feature := dataset.features[column], ClassLabel):
        if unknown := unwanted - {_spaced(name) for name in feature.names}:
            raise ValueError(
                f"--exclude: column '{column}' has no value {min(unknown)!r}, but {', '.join(feature.names)}."
            )
        present = [None if label in MISSING_LABELS else feature.int2str(label) for label in present]
    present = [_spaced(str(value)) for value in present]
    if absent := sorted(unwanted - set(present)):
        logger.warning(f"--exclude: no row of column '{column}' has the value {absent[0]!r}.")
    return dataset.select([row for row, value in enumerate(present) if value not in unwanted])


def _spaced(name: str) -> str:
    """A class name as a caption has it: identifiers have underscores where a caption has spaces."""
    return " ".join(name.replace("_", " ").split())


def _with_images(dataset: Dataset, column: str | None, folder: Path | None) -> Dataset:
    if "shard" in dataset.column_names:
        # These rows say where in the shards images lie.
        return dataset.select_columns("image")
    if column is None:
        candidates = image_candidates(dataset)
        if len(candidates) != 1:
            found = ", ".join(candidates) or f"none among {', '.join(dataset.column_names)}"
            raise ValueError(f"One image column is needed, found {found}. Say which with --image_column.")
        column = candidates[0]
    check_column(dataset, column, "--image_column")
    return only_images(dataset, column, folder)


def _default_label(dataset: Dataset) -> str | None:
    for column in ("label", "cls"):
        if column in dataset.column_names:
            return column
    candidates = [name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    return candidates[0] if len(candidates) == 1 else None


def _is_missing(label: int | str | None) -> bool:
    return label in MISSING_LABELS or (isinstance(label, str) and not label.strip())


def _are_numerals(labels: list[str | None]) -> bool:
    """Whether texts are all numbers: in a csv, labels are."""
    return all(label.strip().isdecimal() for label in labels if not _is_missing(label))


def _classes(
    datasets: dict[str, Dataset], column: str, benchmark: Benchmark, split: str, are_names: bool
) -> tuple[list[str], dict[str, list[int]]]:
    """Class names, and the labels of every split. The values of the column are numbers unless they `are_names`."""
    feature = datasets[split].features[column]
    rows = {split: dataset[column][:] for split, dataset in datasets.items()}
    for name, labels in rows.items():
        if (row := next((row for row, label in enumerate(labels) if _is_missing(label)), None)) is not None:
            raise ValueError(f"Row {row} of the split {name} has no label in column '{column}'.")
    if are_names:
        rows = {split: [_spaced(label) for label in labels] for split, labels in rows.items()}
        names = sorted({name for labels in rows.values() for name in labels})
        index = {name: label for label, name in enumerate(names)}
        return names, {split: [index[name] for name in labels] for split, labels in rows.items()}
    if feature in TEXT:
        rows, feature = {name: [int(label) for label in labels] for name, labels in rows.items()}, Value("int64")
    if not isinstance(feature, ClassLabel) and "int" not in describe(feature):
        raise ValueError(f"Column '{column}' holds {describe(feature)}, not class labels. Set --label_column.")
    if (names := benchmark.class_names(split)) is None:
        if not isinstance(feature, ClassLabel):
            raise ValueError(
                f"Column '{column}' has labels without names. Write the names to classnames.txt in the folder of the data, "
                f"{benchmark.path}, one a line and in the order of the labels, or name a column of strings by --label_column."
            )
        names = [_spaced(name) for name in feature.names]
    for name, labels in rows.items():
        row = max(range(len(labels)), key=labels.__getitem__)
        if labels[row] >= len(names):
            raise ValueError(
                f"Row {row} of the split {name} has label {labels[row]}, but there are only {len(names)} class names "
                f"(labels 0 to {len(names) - 1})."
            )
    return names, rows


def _remaining(
    names: list[str], rows: dict[str, list[int]], labelled: set[int]
) -> tuple[list[str], dict[str, list[int]]]:
    """
    Classes and labels without the classes that had rows, by the labels `labelled`, and have none now. A class that never
    had any stays a candidate.
    """
    kept = {label for labels in rows.values() for label in labels}
    candidates = [label for label in range(len(names)) if label in kept or label not in labelled]
    position = {label: new for new, label in enumerate(candidates)}
    return [names[label] for label in candidates], {
        split: [position[label] for label in labels] for split, labels in rows.items()
    }


def _of_different_names(
    names: list[str], rows: dict[str, list[int]]
) -> tuple[list[str], dict[str, list[int]], list[str]]:
    """Classes of one name as one class, since no text can tell them apart, with a note that says so."""
    counts = Counter(names)
    position = {name: label for label, name in enumerate(counts)}
    rows = {split: [position[names[label]] for label in labels] for split, labels in rows.items()}
    notes = [
        f"{count} classes have the name '{name}' and are scored as one." for name, count in counts.items() if count > 1
    ]
    for note in notes:
        logger.warning(note)
    return list(counts), rows, notes


def _superclasses(
    datasets: dict[str, Dataset], rows: dict[str, list[int]], class_names: list[str], column: str, label_column: str
) -> Tensor:
    """Superclass of each class, which all of its rows must share."""
    feature = next(iter(datasets.values())).features[column]
    found = defaultdict(Counter)
    for split, dataset in datasets.items():
        for label, value in zip(rows[split], dataset[column][:], strict=True):
            found[label][value] += 1

    def counted(values: Counter) -> str:
        names = {value: feature.int2str(value) if isinstance(feature, ClassLabel) else value for value in values}
        return ", ".join(f"{names[value]} {count}" for value, count in values.most_common())

    if several := {class_names[label]: values for label, values in sorted(found.items()) if len(values) > 1}:
        told = "; ".join(f"'{name}' ({counted(values)})" for name, values in several.items())
        quoted = ",".join(f'"{name}"' if "," in name else name for name in several)
        raise ValueError(
            f"{len(several)} {'class has' if len(several) == 1 else 'classes have'} rows of several superclasses in column "
            f"'{column}': {told}. Mend the rows, or leave these classes out by --exclude '{label_column}={quoted}'."
        )
    if missing := [name for label, name in enumerate(class_names) if label not in found]:
        raise ValueError(
            f"Class '{missing[0]}' is empty: it has no row that would say its superclass ('{column}'). --class_splits names "
            "splits with such rows."
        )
    superclass = {label: next(iter(values)) for label, values in found.items()}
    index = {value: number for number, value in enumerate(sorted(set(superclass.values())))}
    return torch.tensor([index[superclass[label]] for label in range(len(class_names))])


class _CaptionFault(ValueError):
    """Rows whose captions cannot be used. Other protocols have no need of them."""


def _captions(dataset: Dataset, column: str | None) -> list[list[str]] | None:
    if column is None:
        usual = [name for name in ("captions", "caption", "txt") if name in dataset.column_names]
        candidates = usual or caption_candidates(dataset)
        if not usual and len(candidates) != 1:
            return None
        column = candidates[0]
        try:
            return _captions(dataset, column)
        except _CaptionFault:
            raise
        # The captions were not asked for, so that a fault in them must not end the run.
        except ValueError as error:
            logger.warning(f"Captions are left out: {error}")
            return None
    check_column(dataset, column, "--caption_column")
    feature = dataset.features[column]
    if not (feature in TEXT or (isinstance(feature, List) and feature.feature in TEXT)):
        raise ValueError(f"Column '{column}' holds no captions (text or lists of texts). Set --caption_column.")
    # As in training, a text may be a list that a table holds as text.
    texts = read_captions(dataset, column, None)["caption"]
    rows = [row.split("\n") if isinstance(row, str) else row or [] for row in texts]
    captions = [[caption.strip() for caption in row if caption and caption.strip()] for row in rows]
    if empty := [row for row, texts in enumerate(captions) if not texts]:
        raise _CaptionFault(f"Row {empty[0]} has no caption in column '{column}': fill it in, or remove the row.")
    return captions
