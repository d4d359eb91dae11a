"""Reads captioned datasets from tables, folders, shards and the Hub into one form: the columns `image` and `caption`."""

import ast
import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, LargeList, List, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetNotFoundError
from transformers.hf_argparser import HfArg

from .augment import check_area
from .columns import MISSING_LABELS, TEXT, describe, find_columns, only_images, prompt_template
from .folders import open_folder
from .images import BrokenImageError, load_image
from .shards import load_shards
from .sources import UNPACK, check_weights, mix, read_sources
from .tables import FILE_FORMATS, read_table


logger = logging.getLogger(__name__)

PROBED_IMAGES = 64
# A text that is a list of strings.
LIST = re.compile(r"""^\s*\[\s*["'](?s:.*)["']\s*,?\s*\]\s*$""")


@dataclass
class DataArguments:
    """Where the image-caption pairs come from."""

    dataset_name: str | None = HfArg(
        default=None, help="Hub dataset, or a folder that `datasets.load_dataset` opens (images included)."
    )
    dataset_config_name: str | None = HfArg(default=None, help="Configuration of the Hub dataset.")
    train_split: str = HfArg(default="train", help="Training split, such as train, or noto+twemoji.")
    validation_split: str | None = HfArg(default=None, help="Split of the same dataset for eval_loss.")
    train_file: list[str] | None = HfArg(
        default=None,
        help="csv, tsv, json, jsonl or parquet file of pairs, or several. Image paths are relative to the file. A yaml file "
        "is a table of sources.",
    )
    source_weights: list[float] | None = HfArg(
        default=None,
        help="With several files: the share of each in an epoch, such as 0.7 0.3 (default: by their sizes).",
    )
    validation_file: list[str] | None = HfArg(
        default=None, help="File of such a form for eval_loss, or several, which are one set."
    )
    train_shards: list[str] | None = HfArg(
        default=None,
        help="WebDataset shards on disk, such as 'data/cc3m-*.tar' or 'data/cc3m-{00000..00331}.tar': images KEY.jpg, jpeg, "
        "png or webp, each with KEY.txt, KEY.text, KEY.caption, or KEY.json with a field caption, captions, text or txt.",
    )
    validation_shards: list[str] | None = HfArg(default=None, help="Shards of such a form for eval_loss.")
    delimiter: str | None = HfArg(
        default=None, help="Column delimiter of a csv file (default: the one of the header, tab in .tsv files)."
    )
    image_column: str | None = HfArg(
        default=None, help="Column of images or image paths (default: image, or the one with a usual name)."
    )
    caption_column: str | None = HfArg(
        default=None,
        help="Column of captions: text, lists of texts (one is drawn each epoch), or class labels (default: caption, or "
        "the one with a usual name).",
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
    random_resized_crop: list[float] | None = HfArg(
        default=None,
        help="Train on a random part of each image, stretched to the model's size: the least and the most of its area to "
        "keep, such as 0.9 1.0, open_clip's (default: the image without its longer side's ends).",
    )
    overfit_check: int | None = HfArg(
        default=None,
        help="Train on the first pairs only, this many, and say whether the model can memorise them. Nothing is saved.",
    )

    def __post_init__(self):
        if self.train_file and self.train_shards:
            raise ValueError(f"--train_file and --train_shards are not mixed. {UNPACK}")
        if sum(source is not None for source in (self.dataset_name, self.train_file, self.train_shards)) != 1:
            raise ValueError(
                "Say where the pairs come from by exactly one of --dataset_name (Hub or folder), --train_file (csv, tsv, "
                "json, jsonl, parquet) and --train_shards (WebDataset). Several together are a table of sources, `--train_file "
                "sources.yaml`."
            )
        if self.source_weights is not None:
            num_files = len(self.train_file) if isinstance(self.train_file, list) else int(self.train_file is not None)
            if num_files < 2 or num_files != len(self.source_weights):
                raise ValueError(
                    f"--source_weights takes one weight for each of several files: --train_file has {num_files}, and there "
                    f"are {len(self.source_weights)} weights."
                )
            check_weights(self.source_weights, "--source_weights")
        if isinstance(self.train_file, list) and len(self.train_file) == 1:
            (self.train_file,) = self.train_file
        for limit in ("max_train_samples", "max_eval_samples"):
            if (number := getattr(self, limit)) is not None and number < 1:
                raise ValueError(f"--{limit} must be at least 1, got {number}.")
        if self.synonyms is not None and not self.inmodal_contrastive:
            raise ValueError("--synonyms goes with --inmodal_contrastive, which augments captions.")
        if self.random_resized_crop is not None:
            check_area(self.random_resized_crop)
        if self.overfit_check is not None and self.overfit_check < 2:
            raise ValueError(f"--overfit_check takes at least 2 pairs, got {self.overfit_check}.")
        if sum(map(bool, (self.validation_split, self.validation_file, self.validation_shards))) > 1:
            raise ValueError("Take one of --validation_split, --validation_file and --validation_shards.")
        if self.validation_split and not self.dataset_name:
            raise ValueError(
                "--validation_split is one of --dataset_name. Take --validation_file or --validation_shards."
            )
        columns = self.image_column, self.caption_column, self.caption_templates
        if self.train_shards and not self.validation_file and any(columns):
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


def open_pairs(
    source: str | list[str],
    split: str = "train",
    config_name: str | None = None,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    caption_templates: list[str] | None = None,
    delimiter: str | None = None,
    limit: int | None = None,
    purpose: str = "training",
) -> Dataset:
    r"""
    Opens pairs of images and captions, wherever they are.

    Args:
        source (`str` or `list[str]`):
            See [`open_table`].
        split (`str`, *optional*, defaults to `"train"`), config_name (`str`, *optional*), delimiter (`str`, *optional*):
            See [`open_table`].
        image_column (`str`, *optional*), caption_column (`str`, *optional*):
            The columns. By default those that [`~modeling_cyclip.data.columns.find_columns`] finds.
        caption_templates (`list[str]`, *optional*):
            What puts class labels into words.
        limit (`int`, *optional*):
            How many rows to take, the first ones. By default all.
        purpose (`str`, *optional*, defaults to `"training"`):
            What messages call the set.

    Returns:
        `datasets.Dataset`: the columns `image` (undecoded) and `caption` (a string or a list of strings, none empty), of
        shards also `shard`.

    Raises:
        `ValueError`: what is wrong with the source, a column, the captions or the images, and what to do.
    """
    dataset, folder = open_table(source, split, config_name, delimiter)
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    if "shard" not in dataset.column_names:
        dataset = _captioned(dataset, folder, image_column, caption_column, caption_templates, purpose)
    _check_images(dataset, purpose)
    return dataset


def open_table(
    source: str | list[str], split: str = "train", config_name: str | None = None, delimiter: str | None = None
) -> tuple[Dataset, Path | None]:
    r"""
    Opens a source as it is, with all its columns.

    Args:
        source (`str` or `list[str]`):
            A table on disk ([`~modeling_cyclip.data.tables.read_table`]), a folder
            ([`~modeling_cyclip.data.folders.open_folder`], or any that `datasets.load_dataset` opens), a dataset of the Hub,
            or WebDataset shards ([`~modeling_cyclip.data.shards.load_shards`]): a list, or a name that ends in `.tar`.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a folder or of a dataset of the Hub.
        config_name (`str`, *optional*):
            Configuration of a dataset of the Hub.
        delimiter (`str`, *optional*):
            What divides the columns of a csv file.

    Returns:
        `tuple(datasets.Dataset, Path)`: the table, and the folder that paths in it are relative to, `None` for the Hub.

    Raises:
        `ValueError`: a source that is not there or cannot be read.
    """
    if not isinstance(source, str) or source.lower().endswith(".tar"):
        return load_shards([source] if isinstance(source, str) else source), None
    path = Path(source).expanduser()
    if path.is_file() or (path.suffix.lower() in FILE_FORMATS and not path.is_dir()):
        return read_table(path, delimiter), path.parent
    if path.is_dir():
        opened = open_folder(path, split, delimiter) if config_name is None else None
        if opened is not None:
            return opened
        if has_magic(str(path)):
            raise ValueError(
                f"{path} holds no table that is found by its name, and `datasets` takes [, ? and * in the name of "
                "a folder for a pattern: rename it."
            )
    folder = path if path.is_dir() else None
    try:
        return load_dataset(source if folder is None else str(folder), config_name, split=split), folder
    except DatasetNotFoundError as error:
        raise ValueError(
            f"{source} is no file or folder here, and the Hub says: {error} Check the name. A private or gated set wants "
            "access from its page and a login, `hf auth login`."
        ) from error
    except ConnectionError as error:
        raise ValueError(
            f"{source} is no file or folder here, and the Hub cannot be reached: {error}. Where there is a network, `hf download "
            f"--repo-type dataset {source} --local-dir FOLDER`; then name the FOLDER here."
        ) from error
    except Exception as error:  # the readers of all kinds of files, and the network
        raise ValueError(f"{source} (split {split}) cannot be loaded: {type(error).__name__}: {error}") from error


def _load(
    args: DataArguments,
    split: str | None,
    files: str | list[str] | None,
    shards: list[str] | None,
    limit: int | None,
    purpose: str,
) -> Dataset:
    columns = {
        name: getattr(args, name) for name in ("image_column", "caption_column", "caption_templates", "delimiter")
    }
    if files is None:
        source = args.dataset_name if shards is None else shards
        return open_pairs(source, split or "train", args.dataset_config_name, limit=limit, purpose=purpose, **columns)
    files = [files] if isinstance(files, str) else files
    for file in files:
        if Path(file).expanduser().is_dir():
            raise ValueError(f"{file} is none of {', '.join(FILE_FORMATS)}; for a folder take --dataset_name.")
    weights, rows = args.source_weights, [{"source": file} for file in files]
    if len(files) == 1 and files[0].lower().endswith((".yaml", ".yml")):
        rows = read_sources(Path(files[0]).expanduser())
        weights = [row.pop("weight") for row in rows] if "weight" in rows[0] else None
    if purpose != "training":
        weights = None  # repeats would be negatives of each other
    if len(rows) == 1:
        return open_pairs(**columns | rows[0], limit=limit, purpose=purpose)
    names = [" ".join(row["source"]) if isinstance(row["source"], list) else row["source"] for row in rows]
    datasets = [
        open_pairs(**columns | row, purpose=f"{purpose} ({name})") for name, row in zip(names, rows, strict=True)
    ]
    return mix(datasets, names, weights, limit)


def iterate_captions(dataset: Dataset) -> Iterator[str]:
    """Every caption of a captioned dataset, lists flattened."""
    for batch in dataset.select_columns("caption").iter(batch_size=1000):
        for caption in batch["caption"]:
            yield from [caption] if isinstance(caption, str) else caption


def _captioned(
    dataset: Dataset,
    folder: Path | None,
    image_column: str | None,
    caption_column: str | None,
    templates: list[str] | None,
    purpose: str,
) -> Dataset:
    """The columns `image` and `caption` of a table, without the rows that have no caption."""
    if len(dataset) == 0:
        raise ValueError(f"The {purpose} set is empty.")
    # Column by column, so that putting captions into form copies no images.
    image_column, caption_column = find_columns(dataset, image_column, caption_column)
    images = only_images(dataset, image_column, folder)
    captions = read_captions(dataset, caption_column, templates)
    num_rows = len(dataset)
    usable = _usable(captions)
    if len(usable) == 0:
        raise ValueError(f"None of the {num_rows} {purpose} pairs has a caption.")
    dataset = concatenate_datasets([images, captions], axis=1)
    if len(usable) == num_rows:
        return dataset
    logger.warning(f"{num_rows - len(usable)} of {num_rows} {purpose} pairs have no caption and are left out.")
    return dataset.select(usable)


def _usable(captions: Dataset) -> np.ndarray:
    """The rows that have a caption."""
    is_usable = []
    for batch in captions.with_format("arrow").iter(10_000):
        column = batch["caption"]
        lengths = (
            pc.list_value_length(column)
            if isinstance(captions.features["caption"], List)
            else pc.binary_length(pc.utf8_trim_whitespace(column))
        )
        is_usable.append(pc.fill_null(pc.greater(lengths, 0), False).to_numpy())
    return np.flatnonzero(np.concatenate(is_usable))


def read_captions(dataset: Dataset, column: str, templates: list[str] | None) -> Dataset:
    """The captions of a table alone, as `caption`: texts, or lists of texts where any has several or comes of a class label."""
    dataset, feature = dataset.select_columns(column), dataset.features[column]
    if isinstance(feature, ClassLabel):
        if not templates:
            raise ValueError(
                f"Column '{column}' holds class labels: say how to put them into words, for example "
                "--caption_templates 'a photo of a {}.'"
            )
        try:
            templates = [prompt_template(text) for text in templates]
        except ValueError as error:
            raise ValueError(f"--caption_templates: {error}") from error
        names = [name.replace("_", " ") for name in feature.names]
        captions = [[template.replace("{}", name) for template in templates] for name in names]
        return _with_lists(dataset, lambda label, _: [] if label in MISSING_LABELS else captions[label])
    if templates:
        raise ValueError(f"--caption_templates goes with a class label column; '{column}' holds {describe(feature)}.")
    if isinstance(feature, List | LargeList) and feature.feature in TEXT:
        return _with_lists(dataset, lambda texts, _: [text for text in texts or [] if text and text.strip()])
    if feature not in TEXT:
        raise ValueError(
            f"Column '{column}' holds {describe(feature)}, not captions (text or lists of texts). Set --caption_column."
        )
    dataset = dataset.rename_columns({column: "caption"})
    if not _has_lists(dataset):
        return dataset
    logger.info("Captions that are lists in text are read as lists.")
    return _with_lists(dataset, _parsed_list)


def _has_lists(dataset: Dataset) -> bool:
    """Whether some of the texts are lists, as a table without lists writes them: in JSON, or as Python prints them."""
    batches = dataset.with_format("arrow").iter(10_000)
    return any(pc.any(pc.match_substring_regex(batch["caption"], LIST.pattern)).as_py() for batch in batches)


def _parsed_list(text: str | None, row: int) -> list[str]:
    texts = [text]
    if text is not None and LIST.match(text):
        try:
            texts = json.loads(text) if text.lstrip()[1:].lstrip().startswith('"') else ast.literal_eval(text.strip())
        except (ValueError, SyntaxError) as error:
            raise ValueError(
                f"Row {row + 1} has a caption that begins like a list but is none: {text[:80]!r}."
            ) from error
    return [text for text in texts if isinstance(text, str) and text.strip()]


def _with_lists(dataset: Dataset, to_captions: Callable[[Any, int], list[str]]) -> Dataset:
    """The only column as lists of captions, which are made of a value and its row."""
    (column,) = dataset.column_names
    return dataset.map(
        lambda value, row: {"caption": to_captions(value, row)},
        with_indices=True,
        input_columns=column,
        remove_columns=column,
        features=Features(caption=List(Value("string"))),
        desc="Reading captions",
    )


def _check_images(dataset: Dataset, purpose: str) -> None:
    """Refuses a set if none of some images from all over it can be opened: then the paths or the column are wrong."""
    rows = np.unique(np.linspace(0, len(dataset) - 1, PROBED_IMAGES).astype(int))
    for number, image in enumerate(dataset.select(rows)["image"]):
        try:
            load_image(image)
        except BrokenImageError as error:
            last_error = error
        else:
            if number:
                logger.warning(
                    f"The first {number} of {len(rows)} images of the {purpose} set that were tried cannot be opened, for "
                    f"example {last_error}"
                )
            return
    raise ValueError(
        f"None of {len(rows)} images from all over the {purpose} set can be opened; the last one: {last_error}. Paths are "
        "taken relative to the folder of the file."
    )
