"""Opens a folder on disk as a table: what `save_to_disk` wrote, tables, shards, or images with their captions beside them."""

import logging
import os
import re
from pathlib import Path

from datasets import Dataset, DatasetDict, concatenate_datasets, load_from_disk

from .images import SUFFIXES
from .shards import captions_of, load_shards
from .tables import FILE_FORMATS, read_table


logger = logging.getLogger(__name__)

# The first of each is the name that `datasets` gives a split.
SPLIT_NAMES = (("train", "training"), ("validation", "valid", "val", "dev"), ("test", "testing", "eval", "evaluation"))
# Beside an image, in the order in which they count.
SIDECARS = (".txt", ".caption", ".json")
# Parquet is left to `datasets`, which knows the forms it publishes.
TABLES = tuple(suffix for suffix in FILE_FORMATS if suffix != ".parquet")


def open_folder(folder: Path, split: str, delimiter: str | None = None) -> tuple[Dataset, Path] | None:
    r"""
    Args:
        folder (`Path`):
            One of: what `save_to_disk` wrote; images with `metadata.csv`, `.tsv` or `.jsonl`; a table for each split or a
            single one; WebDataset shards; images `NAME.jpg` with `NAME.txt`, `NAME.caption` or `NAME.json`.
        split (`str`):
            Name of the split: part of a file's name, or a subfolder. A folder without splits is all `train`.
        delimiter (`str`, *optional*):
            As for [`~modeling_cyclip.data.tables.read_table`].

    Returns:
        `tuple(datasets.Dataset, Path)`: the table, and the folder that paths in it are relative to. `None` for any other
        folder, which `datasets.load_dataset` may know.

    Raises:
        `ValueError`: a part of the folder that cannot be read, or a split that is not there.
    """
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved(folder, split), folder
    # A README may lay the files out otherwise.
    if _has_configurations(folder):
        return None
    inside = next((folder / name for name in _names_of(split) if (folder / name).is_dir()), None)
    if inside is None and split == "train":
        inside = folder
    if inside is not None:
        for suffix in TABLES:
            metadata = inside / f"metadata{suffix}"
            if metadata.is_file():
                dataset = read_table(metadata, delimiter)
                _compare(dataset, metadata)
                return dataset, inside
    tables = _of_split(folder, split, TABLES)
    if tables:
        logger.info(f"The {split} split of {folder} is {', '.join(path.name for path in tables)}.")
        return concatenate_datasets([read_table(table, delimiter) for table in tables]), folder
    if shards := _of_split(folder, split, (".tar",)):
        return load_shards([str(shard) for shard in shards]), folder
    return None if inside is None else _images_with_captions(inside)


def _names_of(split: str) -> tuple[str, ...]:
    return (split, *(name for names in SPLIT_NAMES if split in names for name in names if name != split))


def _saved(folder: Path, split: str) -> Dataset:
    saved = load_from_disk(str(folder))
    if isinstance(saved, DatasetDict):
        if name := next((name for name in _names_of(split) if name in saved), None):
            return saved[name]
        raise ValueError(f"{folder} has no split '{split}', but {', '.join(saved)}.")
    if split != "train":
        raise ValueError(f"{folder} has no splits: all of it is 'train'.")
    return saved


def _has_configurations(folder: Path) -> bool:
    readme = folder / "README.md"
    return readme.is_file() and "\nconfigs:" in readme.read_text(encoding="utf-8", errors="replace")


def _of_split(folder: Path, split: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a split: those named after it, or all that there are where none is named after any split."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file())
    named = {
        split_name: re.compile(rf"(?:.*[-_.])?{re.escape(split_name)}(?:[-_.].*)?", re.I) for split_name in _all(split)
    }
    for name in _names_of(split):
        if found := [path for path in files if named[name].fullmatch(path.stem)]:
            return found
    if split != "train" or any(pattern.fullmatch(path.stem) for pattern in named.values() for path in files):
        return []
    # Several tables without names of splits: which is meant is not for us to say.
    return files if len(files) == 1 or ".tar" in suffixes else []


def _all(split: str) -> list[str]:
    return [*_names_of(split), *(name for names in SPLIT_NAMES for name in names)]


def _compare(dataset: Dataset, metadata: Path) -> None:
    """Says which images have no row, and which rows no image; a set without any of its images is refused later."""
    folder = metadata.parent
    column = next((name for name in dataset.column_names if name.lower() in ("file_name", "filename", "image")), None)
    if column is None:
        return
    images = {os.path.relpath(path, folder).replace(os.sep, "/") for path in _walk(folder)}
    rows = {os.path.normpath(name).replace("\\", "/") for name in dataset[column] if isinstance(name, str) and name}
    if without_row := sorted(images - rows):
        logger.warning(
            f"{len(without_row)} of {len(images)} images of {folder} have no row in {metadata.name} and are left out, the "
            f"first one: {without_row[0]}"
        )
    missing = sorted(name for name in rows - images if not (folder / name).is_file())
    if missing:
        logger.warning(
            f"{len(missing)} of {len(rows)} images that {metadata.name} names are not in {folder}, the first one: {missing[0]}"
        )


def _walk(folder: Path) -> list[Path]:
    return [
        Path(root, name)
        for root, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(SUFFIXES)
    ]


def _images_with_captions(folder: Path) -> tuple[Dataset, Path] | None:
    """Images and the captions of the files beside them that have the same name; `None` where no image has one."""
    rows: list[tuple[str, list[str]]] = []
    without_caption, without_image, num_images = [], [], 0
    for root, _, names in os.walk(folder, followlinks=True):
        texts = {name for name in names if name.lower().endswith(SIDECARS)}
        used = set()
        for name in sorted(name for name in names if name.lower().endswith(SUFFIXES)):
            num_images += 1
            stem = os.path.splitext(name)[0]
            sidecars = [text for suffix in SIDECARS for text in (stem + suffix, name + suffix) if text in texts]
            used.update(sidecars)
            for sidecar in sidecars:
                path = Path(root, sidecar)
                if captions := captions_of(path.read_bytes(), is_json=path.suffix.lower() == ".json"):
                    rows.append((os.path.join(root, name), captions))
                    break
            else:
                without_caption.append(os.path.join(root, name))
        without_image += [os.path.join(root, name) for name in sorted(texts - used) if not name.endswith(".json")]
    if not rows:
        return None
    logger.info(f"{folder}: {len(rows)} images with captions in files beside them.")
    if without_caption:
        logger.warning(
            f"{len(without_caption)} of {num_images} images have no usable caption beside them and are left out, the first "
            f"one: {without_caption[0]}"
        )
    if without_image:
        logger.warning(f"{len(without_image)} captions have no image beside them, the first one: {without_image[0]}")
    images, captions = zip(*sorted(rows), strict=True)
    return Dataset.from_dict({"image": images, "caption": captions}), folder
