"""Reads captioned datasets from tables, folders, shards and the Hub into one form: the columns `image` and `caption`."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, LargeList, List, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError
from transformers.hf_argparser import HfArg

from .columns import MISSING_LABELS, TEXT, check_column, describe, only_images
from .images import BrokenImageError, load_image
from .shards import load_shards


logger = logging.getLogger(__name__)

FILE_FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


@dataclass
class DataArguments:
    """Where the image-caption pairs come from."""

    dataset_name: str | None = HfArg(
        default=None, help="Hub dataset, or a folder that `datasets.load_dataset` opens (images included)."
    )
    dataset_config_name: str | None = HfArg(default=None, help="Configuration of the Hub dataset.")
    train_split: str = HfArg(default="train", help="Training split, such as train, or noto+twemoji.")
    validation_split: str | None = HfArg(default=None, help="Split of the same dataset for eval_loss.")
    train_file: str | None = HfArg(
        default=None, help="csv, tsv, json, jsonl or parquet file of pairs. Image paths are relative to the file."
    )
    validation_file: str | None = HfArg(default=None, help="File of the same form for eval_loss.")
    train_shards: list[str] | None = HfArg(
        default=None,
        help="WebDataset shards on disk, such as 'data/cc3m-*.tar' or 'data/cc3m-{00000..00331}.tar': KEY.jpg with "
        "KEY.txt.",
    )
    validation_shards: list[str] | None = HfArg(default=None, help="Shards of the same form for eval_loss.")
    delimiter: str | None = HfArg(
        default=None, help="Column delimiter of a csv file (default: comma, tab in .tsv files)."
    )
    image_column: str = HfArg(default="image", help="Column of images or image paths.")
    caption_column: str = HfArg(
        default="caption", help="Column of captions: text, lists of texts (one is drawn each epoch), or class labels."
    )
    caption_templates: list[str] | None = HfArg(
        default=None, help="With a class label column: templates such as 'a photo of a {}.' (one is drawn each epoch)."
    )
    max_train_samples: int | None = HfArg(default=None, help="Train on the first pairs only, this many.")
    max_eval_samples: int | None = HfArg(default=None, help="Evaluate on the first pairs only, this many.")
    eval_zero_shot: str | None = HfArg(
        default=None,
        help="Labelled images (a benchmark's name, a folder or a Hub id). Every evaluation measures eval_zero_shot_top1 "
        "on them; --metric_for_best_model can name it.",
    )
    inmodal_contrastive: bool = HfArg(
        default=False,
        help="Add contrastive terms between images, and between captions, and their augmented views, as the official "
        "code can. No result of it has been measured.",
    )
    synonyms: str | None = HfArg(
        default=None, help="With --inmodal_contrastive: file of synonyms, one set a line, separated by commas."
    )
    overfit_check: int | None = HfArg(
        default=None,
        help="Train on the first pairs only, this many, and say whether the model can memorise them. Nothing is saved.",
    )

    def __post_init__(self):
        if sum(source is not None for source in (self.dataset_name, self.train_file, self.train_shards)) != 1:
            raise ValueError(
                "Say where the pairs come from by exactly one of --dataset_name (Hub or folder), --train_file (csv, tsv, "
                "json, jsonl, parquet) and --train_shards (WebDataset)."
            )
        if self.synonyms is not None and not self.inmodal_contrastive:
            raise ValueError("--synonyms goes with --inmodal_contrastive, which augments captions.")
        if self.overfit_check is not None and self.overfit_check < 2:
            raise ValueError(f"--overfit_check takes at least 2 pairs, got {self.overfit_check}.")
        for validation, training in (
            ("validation_split", "dataset_name"),
            ("validation_file", "train_file"),
            ("validation_shards", "train_shards"),
        ):
            if getattr(self, validation) and not getattr(self, training):
                raise ValueError(
                    f"--{validation} goes with --{training}. Take --validation_split with --dataset_name, "
                    "--validation_file with --train_file, --validation_shards with --train_shards."
                )
        columns = self.image_column, self.caption_column, self.caption_templates
        if self.train_shards and columns != ("image", "caption", None):
            raise ValueError(
                "--image_column, --caption_column and --caption_templates go with tables: in shards the image is KEY.jpg "
                "(jpeg, png, webp), the caption KEY.txt, or the field `caption` of KEY.json."
            )
        if self.overfit_check is not None:
            # The check evaluates nothing.
            self.validation_file = self.validation_split = self.validation_shards = self.eval_zero_shot = None


def load_captioned_datasets(args: DataArguments) -> tuple[Dataset, Dataset | None]:
    r"""
    Returns:
        `tuple(datasets.Dataset, datasets.Dataset)`: the training pairs and, where asked for, the validation pairs, with
        the columns `image` (undecoded) and `caption` (a string or a list of strings) and no empty captions.

    Raises:
        `ValueError`: what is wrong with the file, the split, a column or the images, and what to do.
    """
    train = _load(args, args.train_split, args.train_file, args.train_shards, args.max_train_samples, "training")
    sources = args.validation_split, args.validation_file, args.validation_shards
    return train, _load(args, *sources, args.max_eval_samples, "validation") if any(sources) else None


def _load(
    args: DataArguments, split: str | None, file: str | None, shards: list[str] | None, limit: int | None, purpose: str
) -> Dataset:
    if shards is not None:
        dataset = load_shards(shards)
    elif file is not None:
        dataset = _read_file(Path(file), args.delimiter)
    else:
        dataset = _read_split(split, args)
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    if shards is None:
        # Paths in a file are relative to it.
        dataset = _captioned(dataset, None if file is None else Path(file).parent, args, purpose)
    _check_images(dataset, purpose)
    return dataset


def iterate_captions(dataset: Dataset) -> Iterator[str]:
    """Every caption of a captioned dataset, lists flattened."""
    for batch in dataset.select_columns("caption").iter(batch_size=1000):
        for caption in batch["caption"]:
            yield from [caption] if isinstance(caption, str) else caption


def _read_file(path: Path, delimiter: str | None) -> Dataset:
    if path.suffix not in FILE_FORMATS:
        raise ValueError(f"{path} is none of {', '.join(FILE_FORMATS)}; for a folder of images take --dataset_name.")
    if not path.is_file():
        raise ValueError(f"{path} does not exist.")
    file_format = FILE_FORMATS[path.suffix]
    options = {"sep": delimiter or ("\t" if path.suffix == ".tsv" else ",")} if file_format == "csv" else {}
    try:
        return load_dataset(file_format, data_files=str(path), split="train", **options)
    except (DatasetGenerationError, ValueError) as error:
        # `datasets` says of a table without rows: 'Instruction "train" corresponds to no data!'.
        reason = "it has no rows" if "corresponds to no data" in str(error) else error.__cause__ or error
        raise ValueError(f"{path} cannot be read as {file_format}: {reason}") from error


def _read_split(split: str, args: DataArguments) -> Dataset:
    try:
        return load_dataset(args.dataset_name, args.dataset_config_name, split=split)
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise ValueError(f"{args.dataset_name} (split {split}) cannot be loaded: {error}") from error


def _captioned(dataset: Dataset, folder: Path | None, args: DataArguments, purpose: str) -> Dataset:
    """The columns `image` and `caption` of a table, without the rows that have no caption."""
    if len(dataset) == 0:
        raise ValueError(f"The {purpose} set is empty.")
    # Column by column, so that putting captions into form copies no images.
    several = ", or --delimiter if that is several columns" if len(dataset.column_names) == 1 else ""
    check_column(dataset, args.image_column, f"--image_column{several}")
    check_column(dataset, args.caption_column, f"--caption_column{several}")
    images = only_images(dataset, args.image_column, folder)
    captions = _captions(dataset, args.caption_column, args.caption_templates)
    dataset = concatenate_datasets([images, captions], axis=1)
    num_rows = len(dataset)
    dataset = dataset.filter(_has_caption, input_columns="caption", desc="Dropping pairs without a caption")
    if len(dataset) == 0:
        raise ValueError(f"None of the {num_rows} {purpose} pairs has a caption.")
    if len(dataset) < num_rows:
        logger.warning(f"{num_rows - len(dataset)} of {num_rows} {purpose} pairs have no caption and are left out.")
    return dataset


def _captions(dataset: Dataset, column: str, templates: list[str] | None) -> Dataset:
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
        raise ValueError(f"--caption_templates goes with a class label column; '{column}' holds {describe(feature)}.")
    if isinstance(feature, List | LargeList) and feature.feature in TEXT:
        return _with_lists(dataset, lambda texts: [text for text in texts or [] if _has_caption(text)])
    if feature not in TEXT:
        raise ValueError(
            f"Column '{column}' holds {describe(feature)}, not captions (text or lists of texts). Set --caption_column."
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


def _has_caption(caption: str | list[str] | None) -> bool:
    if caption is None or isinstance(caption, str):
        return bool(caption and caption.strip())
    return any(_has_caption(text) for text in caption)


def _check_images(dataset: Dataset, purpose: str) -> None:
    """Refuses a set if none of its first images can be opened: then the paths or the column are wrong."""
    for image in dataset.select(range(min(16, len(dataset))))["image"]:
        try:
            load_image(image)
            return
        except BrokenImageError as error:
            last_error = error
    raise ValueError(
        f"None of the first images of the {purpose} set can be opened; the last one: {last_error}. Paths are taken "
        "relative to the folder of the file."
    )
