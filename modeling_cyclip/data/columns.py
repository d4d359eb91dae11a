"""Finds and checks the columns of a dataset, for training and for evaluation."""

import logging
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Image, LargeList, List, Value


logger = logging.getLogger(__name__)

TEXT = (Value("string"), Value("large_string"))
BYTES = (Value("binary"), Value("large_binary"))
# `datasets` gives one of these where an image has no label.
MISSING_LABELS = (None, -1)
# What public sets call their columns, in lower case. The first name is taken even where others are there.
IMAGE_NAMES = (
    "image", "images", "img", "picture", "photo", "image_path", "img_path", "image_file", "image_name", "image_bytes",
    "filepath", "file_path", "filename", "file_name", "file", "path", "jpg", "jpeg", "png", "webp",
)  # fmt: skip
CAPTION_NAMES = (
    "caption", "captions", "text", "texts", "txt", "title", "titles", "sentence", "sentences", "description",
    "descriptions", "alt_text", "alt",
)  # fmt: skip
# What stands for the class name in templates: here, in the files of CLIP-benchmark and in those of others.
PLACEHOLDER = re.compile(r"\{(?:c|name|class|label|classname|class_name)?\}|%s")
URL_NAMES = ("url", "image_url", "img_url", "image_urls", "urls", "coco_url", "flickr_url")


def check_column(dataset: Dataset, column: str, options: str) -> None:
    """Raises a `ValueError` where there is no such column; it names the `options` to set."""
    if column not in dataset.column_names:
        raise ValueError(
            f"There is no column '{column}'; the data has {', '.join(dataset.column_names)}. Set {options}."
        )


def find_columns(dataset: Dataset, image_column: str | None, caption_column: str | None) -> tuple[str, str]:
    r"""
    The columns of images and of captions. One that is not named (`None`) is found where exactly one fits: for images the
    only one of the type `Image`, or else a usual name; for captions a usual name. The log says which.

    Raises:
        `ValueError`: a column that is not there, or for which none or several fit, or one of URLs. It says all at once.
    """
    pairs = (("image", image_column, image_candidates), ("caption", caption_column, caption_candidates))
    found, problems, options = {}, [], []
    for kind, column, candidates_of in pairs:
        candidates = [column] if column in dataset.column_names else []
        if column is None:
            candidates = candidates_of(dataset)
            if len(candidates) == 1 and candidates[0] != kind:
                logger.info(f"The column of {kind}s is '{candidates[0]}'.")
        if len(candidates) == 1:
            found[kind] = candidates[0]
            continue
        options.append(f"--{kind}_column")
        if column is not None:
            problems.append(f"there is no column '{column}'")
        elif candidates:
            problems.append(f"several columns may hold the {kind}s, {' and '.join(candidates)}")
        else:
            problems.append(f"no column has a usual name of {kind}s")
    urls = _urls(dataset, found.get("image"), image_column)
    if urls is not None:
        raise ValueError(
            f"Column '{urls}' holds URLs. Download the images first, `cyclip prepare urls TABLE FOLDER` with this table or "
            "another of URLs and captions, and train on --train_shards 'FOLDER/*.tar'."
        )
    if problems:
        text = "; ".join(problems)
        raise ValueError(
            f"{text[0].upper()}{text[1:]}; the data has {', '.join(dataset.column_names)}. Set {' and '.join(options)}"
            f"{_advice(dataset)}."
        )
    return found["image"], found["caption"]


def _advice(dataset: Dataset) -> str:
    if any(name.lower().endswith((".jpg", ".jpeg", ".png", ".webp")) for name in dataset.column_names):
        return ", after a first line with the names of the columns, which the file seems to lack"
    return ", or --delimiter if that is several columns" if len(dataset.column_names) == 1 else ""


def image_candidates(dataset: Dataset) -> list[str]:
    typed = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    if len(typed) == 1:
        return typed
    return _named(typed or dataset.column_names, IMAGE_NAMES) or typed


def caption_candidates(dataset: Dataset) -> list[str]:
    return _named(dataset.column_names, CAPTION_NAMES)


def url_candidates(dataset: Dataset) -> list[str]:
    return _named(dataset.column_names, URL_NAMES)


def _named(columns: list[str], names: tuple[str, ...]) -> list[str]:
    fitting = [column for column in columns if column.lower() in names]
    return [names[0]] if names[0] in fitting else fitting


def _urls(dataset: Dataset, image_column: str | None, told: str | None) -> str | None:
    """The column of URLs, if the images are only there."""
    columns = [image_column] if image_column else [] if told else url_candidates(dataset)
    for column in columns:
        if dataset.features[column] in TEXT:
            value = dataset[0][column] if len(dataset) else None
            if value is not None and value.startswith(("http://", "https://")):
                return column
    return None


def describe(feature) -> str:
    """What a column holds, in a word or two."""
    if isinstance(feature, List | LargeList):
        return f"lists of {describe(feature.feature)}"
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def only_images(dataset: Dataset, column: str, folder: str | Path | None = None) -> Dataset:
    """
    The column of images alone, as `image`, undecoded: images, their bytes, `{"bytes", "path"}`, or paths. Paths are
    relative to `folder`, by default to the working directory. Raises a `ValueError` where the column holds none of these.
    """
    feature = dataset.features[column]
    # Without the metadata of the Hub, images in parquet are structs.
    is_struct = isinstance(feature, dict) and feature.get("bytes") in BYTES and feature.get("path", TEXT[0]) in TEXT
    if not (isinstance(feature, Image) or feature in TEXT or feature in BYTES or is_struct):
        raise ValueError(
            f"Column '{column}' holds {describe(feature)}, not images or paths of images. Set --image_column."
        )
    dataset = dataset.select_columns(column)
    if feature in TEXT:
        folder = Path(folder or ".").resolve()
        dataset = dataset.with_format("arrow").map(
            _resolved,
            fn_kwargs={
                "column": column,
                "folder": str(folder),
                "is_windows": _has_windows_paths(dataset, column, folder),
            },
            batched=True,
            desc="Resolving image paths",
        )
        dataset = dataset.with_format(None)
    return dataset.rename_columns({column: "image"}).cast_column("image", Image(decode=False))


def _has_windows_paths(dataset: Dataset, column: str, folder: Path) -> bool:
    """Whether the first path with a backslash is of a file only if that divides folders."""
    if os.sep == "\\":
        return False
    for batch in dataset.with_format("arrow").iter(1000):
        for path in batch[column].drop_null():
            if "\\" in path.as_py():
                return not (folder / path.as_py()).exists()
        return False
    return False


def _resolved(table: pa.Table, column: str, folder: str, is_windows: bool) -> pa.Table:
    paths = table[column].cast(pa.string())
    if is_windows:
        paths = pc.replace_substring(paths, "\\", "/")
    paths = pc.replace_substring_regex(paths, r"^~/", os.path.expanduser("~/").replace("\\", r"\\"))
    is_absolute = pc.match_substring_regex(paths, r"^(/|[A-Za-z]:[\\/])")
    below = pc.binary_join_element_wise(folder, paths, "/")
    paths = pc.if_else(is_absolute, paths, below)
    # An empty cell is no path, and least of all the folder itself.
    is_given = pc.greater(pc.binary_length(table[column]), 0)
    return pa.table({column: pc.if_else(is_given, paths, pa.scalar(None, pa.string()))})


def prompt_template(text: str) -> str:
    """A template with `{}` in each place of the class name. Raises a `ValueError` where it has none, or other fields."""
    text, count = PLACEHOLDER.subn("{}", text)
    if count == 0:
        raise ValueError(f"A prompt template needs {{}} where the class name goes: {text!r} has none.")
    if other := re.search(r"\{[^{}]+\}", text):
        raise ValueError(
            f"A prompt template has {{}} where the class name goes, and no other field: {text!r} has {other[0]}."
        )
    return text
