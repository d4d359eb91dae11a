"""Mixes several sources of pairs into one set, each with its share of an epoch."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset, Features, List, Value, concatenate_datasets

from .columns import prompt_template


logger = logging.getLogger(__name__)

# A row of a table of sources: what `open_pairs` takes, and the weight.
KEYS = ("source", "weight", "split", "config_name", "image_column", "caption_column", "caption_templates", "delimiter")
# Shards are read from few files at a time, and tables from anywhere.
UNPACK = (
    "Unpack the shards (`tar -xf b.tar -C FOLDER`, each of them) into a folder and name it in a table of sources, `--train_file "
    "sources.yaml`, with rows such as `- {source: a.csv, weight: 0.7}` and `- {source: FOLDER, weight: 0.3}`."
)


def read_sources(path: Path) -> list[dict[str, Any]]:
    r"""
    Reads a table of sources, a YAML file with a list of rows. Each row has a `source` (a file, a folder, the name of a
    dataset on the Hub, or a list of shards) and may have a `weight`, a `split` and columns. Paths that are there beside the
    table are relative to it.

    Raises:
        `ValueError`: what is wrong with the file.
    """
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and "source" in row for row in rows):
        raise ValueError(
            f"{path} must be a list of rows with a `source` each, such as `- {{source: a.csv, weight: 0.7}}`."
        )
    for number, row in enumerate(rows, 1):
        if unknown := [key for key in row if key not in KEYS]:
            raise ValueError(f"{path}, row {number} has '{unknown[0]}', which is none of {', '.join(KEYS)}.")
        try:
            for text in row.get("caption_templates") or ():
                prompt_template(text)
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
        sources = row["source"] if isinstance(row["source"], list) else [row["source"]]
        # Shards are named by patterns, which match no file of that name.
        beside = [
            str(path.parent / source) if _is_beside(path.parent, str(source)) else str(source) for source in sources
        ]
        row["source"] = beside if isinstance(row["source"], list) else beside[0]
    with_weight = ["weight" in row for row in rows]
    if any(with_weight) and not all(with_weight):
        raise ValueError(f"{path}, row {with_weight.index(False) + 1} has no weight, but others have one.")
    check_weights([row["weight"] for row in rows if "weight" in row], f"The weights in {path}")
    return rows


def check_weights(weights: Sequence[Any], name: str) -> None:
    # Not a number is not above 0, either.
    if not all(isinstance(weight, int | float) and 0 < weight < float("inf") for weight in weights):
        raise ValueError(f"{name} must be above 0, got {' '.join(map(str, weights))}.")


def _is_beside(folder: Path, source: str) -> bool:
    return (folder / source).exists() or (source.endswith(".tar") and not Path(source).is_absolute())


def mix(
    datasets: Sequence[Dataset], names: Sequence[str], weights: Sequence[float] | None, limit: int | None
) -> Dataset:
    r"""
    One set of several. With weights, pairs are repeated so that each source has its share and no pair is left out: the
    source with the most pairs for its share comes once, and the others as often as it takes.

    Args:
        datasets (`Sequence[datasets.Dataset]`):
            Sets with the columns `image` and `caption`, of shards also `shard`.
        names (`Sequence[str]`):
            What messages call them.
        weights (`Sequence[float]`, *optional*):
            The share of each, in any unit.
        limit (`int`, *optional*):
            How many pairs to take, the first ones of each source.

    Raises:
        `ValueError`: shards among tables.
    """
    sharded = ["shard" in dataset.column_names for dataset in datasets]
    if any(sharded) and not all(sharded):
        raise ValueError(
            f"{names[sharded.index(True)]} are shards and {names[sharded.index(False)]} is none: shards are mixed with shards "
            f"only. {UNPACK}"
        )
    sizes = np.array([len(dataset) for dataset in datasets])
    counts = sizes
    if weights is not None:
        shares = np.array(weights) / sum(weights)
        counts = np.maximum(np.rint(shares * (sizes / shares).max()).astype(int), sizes)
    shares = counts / counts.sum()
    for name, size, count, share in zip(names, sizes, counts, shares, strict=True):
        logger.info(f"{name}: {size} pairs, {100 * share:.1f} % of an epoch, each pair {count / size:.3g} times.")
    if limit is not None and limit < counts.sum():
        counts = np.rint(shares * limit).astype(int)
    starts = np.cumsum(sizes) - sizes
    rows = [start + _repeated(size, count) for start, size, count in zip(starts, sizes, counts, strict=True)]
    together = concatenate_datasets(_alike(datasets))
    return together if limit is None and weights is None else together.select(np.concatenate(rows))


def _repeated(size: int, count: int) -> np.ndarray:
    """`count` of `size` rows: all of them as often as they go into it, and then some from all over the set."""
    times, rest = divmod(count, size)
    some = np.arange(rest) * size // max(rest, 1)
    return np.append(np.tile(np.arange(size), times), some if times else np.arange(rest))


def _alike(datasets: Sequence[Dataset]) -> list[Dataset]:
    """The sets with captions in one form, lists where any has lists, and with numbers of shards that differ."""
    has_lists = any(isinstance(dataset.features["caption"], List) for dataset in datasets)
    alike, num_shards = [], 0
    for dataset in datasets:
        if has_lists and not isinstance(dataset.features["caption"], List):
            captions = dataset.select_columns("caption").map(
                lambda captions: {"caption": [[caption] for caption in captions]},
                input_columns="caption",
                features=Features(caption=List(Value("string"))),
                batched=True,
                desc="Reading captions",
            )
            dataset = concatenate_datasets([dataset.remove_columns("caption"), captions], axis=1)
        if "shard" in dataset.column_names:
            shards = dataset.with_format("numpy", columns=["shard"])[:]["shard"]
            dataset = dataset.remove_columns("shard").add_column("shard", shards + np.int32(num_shards))
            num_shards += int(shards.max()) + 1
        alike.append(dataset)
    return alike
