"""Captioned datasets from tables, folders, shards and the Hub, brought to one form: columns `image` and `caption`."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image, LargeList, List, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError

from evaluation.evaluation_set import MISSING_LABELS, resolve_image_paths
from modeling_cyclip.images import BrokenImageError, load_image
from training.arguments import DataArguments
from training.shards import load_shards


logger = logging.getLogger(__name__)

TEXT = (Value("string"), Value("large_string"))

FILE_FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def load_captioned_datasets(args: DataArguments) -> tuple[Dataset, Dataset | None]:
    r"""
    Returns:
        `tuple(datasets.Dataset, datasets.Dataset)`: the training pairs and, where asked for, the validation pairs, with
        the columns `image` (undecoded) and `caption` (a string or a list of strings) and no empty captions.

    Raises:
        `ValueError`: what is wrong with the file, the split, a column or the images, and what to do.
    """
    if args.train_shards is not None:
        train, validation = _read_shards(args.train_shards, args.max_train_samples, "training"), args.validation_shards
        return train, None if validation is None else _read_shards(validation, args.max_eval_samples, "validation")
    if args.train_file is not None:
        train, validation = _read_file(args.train_file, args), args.validation_file
        validation = None if validation is None else _read_file(validation, args)
    else:
        train, validation = _read_split(args.train_split, args), args.validation_split
        validation = None if validation is None else _read_split(validation, args)
    train = _captioned(train, args, args.max_train_samples, "training")
    return train, None if validation is None else _captioned(validation, args, args.max_eval_samples, "validation")


def iterate_captions(dataset: Dataset) -> Iterator[str]:
    """Every caption of a captioned dataset, lists flattened."""
    for batch in dataset.select_columns("caption").iter(batch_size=1000):
        for caption in batch["caption"]:
            yield from [caption] if isinstance(caption, str) else caption


def _read_file(name: str, args: DataArguments) -> Dataset:
    path = Path(name)
    if path.suffix not in FILE_FORMATS:
        raise ValueError(f"{path} is none of {', '.join(FILE_FORMATS)}; for a folder of images take --dataset_name.")
    if not path.is_file():
        raise ValueError(f"{path} does not exist.")
    options = {}
    if FILE_FORMATS[path.suffix] == "csv":
        options["sep"] = args.delimiter or ("\t" if path.suffix == ".tsv" else ",")
    try:
        dataset = load_dataset(FILE_FORMATS[path.suffix], data_files=str(path), split="train", **options)
    except (DatasetGenerationError, ValueError) as error:
        # What `datasets` says of a table that has only a head is "Instruction "train" corresponds to no data!".
        reason = "it has no rows" if "corresponds to no data" in str(error) else error.__cause__ or error
        raise ValueError(f"{path} cannot be read as {FILE_FORMATS[path.suffix]}: {reason}") from error
    _check_column(dataset, args.image_column, "--image_column")
    if dataset.features[args.image_column] in TEXT:
        dataset = resolve_image_paths(dataset, args.image_column, path.parent)
    return dataset


def _read_split(split: str, args: DataArguments) -> Dataset:
    try:
        return load_dataset(args.dataset_name, args.dataset_config_name, split=split)
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise ValueError(f"{args.dataset_name} (split {split}) cannot be loaded: {error}") from error


def _read_shards(patterns: list[str], max_samples: int | None, purpose: str) -> Dataset:
    dataset = _first(load_shards(patterns), max_samples)
    _check_images(dataset, purpose)
    return dataset


def _first(dataset: Dataset, max_samples: int | None) -> Dataset:
    return dataset if max_samples is None else dataset.select(range(min(max_samples, len(dataset))))


def _captioned(dataset: Dataset, args: DataArguments, max_samples: int | None, purpose: str) -> Dataset:
    dataset = _first(dataset, max_samples)
    if len(dataset) == 0:
        raise ValueError(f"The {purpose} set is empty.")
    # Column by column, so that putting captions into form copies no images.
    images = _images(dataset, args.image_column)
    captions = _captions(dataset, args.caption_column, args.caption_templates)
    dataset = concatenate_datasets([images, captions], axis=1)
    num_rows = len(dataset)
    dataset = dataset.filter(_has_caption, input_columns="caption", desc="Dropping pairs without a caption")
    if len(dataset) == 0:
        raise ValueError(f"None of the {num_rows} {purpose} pairs has a caption.")
    if len(dataset) < num_rows:
        logger.warning(f"{num_rows - len(dataset)} of {num_rows} {purpose} pairs have no caption and are left out.")
    _check_images(dataset, purpose)
    return dataset


def _check_column(dataset: Dataset, column: str, option: str) -> None:
    if column not in dataset.column_names:
        raise ValueError(
            f"There is no column '{column}'; the data has {', '.join(dataset.column_names)}. Set {option}"
            f"{', or --delimiter if that is several columns' if len(dataset.column_names) == 1 else ''}."
        )


def _images(dataset: Dataset, column: str) -> Dataset:
    _check_column(dataset, column, "--image_column")
    feature = dataset.features[column]
    if not (isinstance(feature, Image) or feature in TEXT):
        raise ValueError(
            f"Column '{column}' holds {_describe(feature)}, not images or paths of images. Set --image_column."
        )
    return dataset.select_columns(column).rename_columns({column: "image"}).cast_column("image", Image(decode=False))


def _captions(dataset: Dataset, column: str, templates: list[str] | None) -> Dataset:
    _check_column(dataset, column, "--caption_column")
    dataset, feature = dataset.select_columns(column), dataset.features[column]
    if isinstance(feature, ClassLabel):
        if not templates:
            raise ValueError(
                f"Column '{column}' holds class labels: say how to put them into words, for example "
                "--caption_templates 'a photo of a {}.'"
            )
        if wrong := [template for template in templates if "{}" not in template]:
            raise ValueError(f"Caption templates need a {{}} for the class name: {wrong[0]!r} has none.")
        names = [name.replace("_", " ") for name in feature.names]
        captions = [[template.format(name) for template in templates] for name in names]
        return _with_lists(dataset, lambda label: [] if label in MISSING_LABELS else captions[label])
    if templates:
        raise ValueError(f"--caption_templates goes with a class label column; '{column}' holds {_describe(feature)}.")
    if isinstance(feature, List | LargeList) and feature.feature in TEXT:
        return _with_lists(dataset, lambda texts: [text for text in texts or [] if _has_caption(text)])
    if feature not in TEXT:
        raise ValueError(
            f"Column '{column}' holds {_describe(feature)}, not captions (text or lists of texts). Set --caption_column."
        )
    return dataset.rename_columns({column: "caption"})


def _with_lists(dataset: Dataset, to_captions: Callable[[Any], list[str]]) -> Dataset:
    """The only column as lists of captions."""
    (column,) = dataset.column_names
    return dataset.map(
        lambda value: {"caption": to_captions(value)},
        input_columns=column,
        remove_columns=column,
        features=Features(caption=List(Value("string"))),
        desc="Reading captions",
    )


def _describe(feature) -> str:
    if isinstance(feature, List | LargeList):
        return f"lists of {_describe(feature.feature)}"
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def _has_caption(caption: str | list[str] | None) -> bool:
    if caption is None or isinstance(caption, str):
        return bool(caption and caption.strip())
    return any(_has_caption(text) for text in caption)


def _check_images(dataset: Dataset, purpose: str) -> None:
    """Refuses a set none of whose first images can be opened: then it is the paths or the column that are wrong."""
    for image in dataset.select(range(min(16, len(dataset))))["image"]:
        try:
            load_image(image)
            return
        except BrokenImageError as error:
            first_error = error
    raise ValueError(
        f"None of the first images of the {purpose} set can be opened; the last one: {first_error}. Paths are taken "
        "relative to the folder of the file."
    )
