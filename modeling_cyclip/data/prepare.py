"""Brings public collections of pairs into forms to train and evaluate on; the work of `cyclip prepare`."""

import argparse
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
from datasets import Dataset
from pyarrow import parquet

from .columns import TEXT, caption_candidates, check_column, describe, url_candidates
from .tables import FILE_FORMATS, read_table


# The first lines of a list tell which column holds the URLs.
PROBED_LINES = 1000
ROWS_AT_A_TIME = 100_000
SPLITS = ("train", "val", "test")


def read_url_list(
    path: Path, url_column: str | None = None, caption_column: str | None = None
) -> Iterator[dict[str, str] | None]:
    r"""
    `url` and `caption` of every row of a list; `None` for a row that lacks either.

    Args:
        path (`Path`):
            A tab-separated list without a heading, known by a URL in its first line, or a table with the names of its
            columns, which [`~modeling_cyclip.data.tables.read_table`] opens.
        url_column (`str`, *optional*), caption_column (`str`, *optional*):
            Columns of the table. By default those with a usual name.

    Raises:
        `ValueError`: what is wrong with the file or its columns.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist.")
    if FILE_FORMATS.get(path.suffix.lower()) not in ("json", "parquet") and _begins_with_url(path):
        rows = _rows_without_heading(path)
    else:
        rows = _rows_of_table(path, url_column, caption_column)
    for url, caption in rows:
        yield (
            {"url": url, "caption": caption.strip()} if url and caption and _is_url(url) and caption.strip() else None
        )


def _begins_with_url(path: Path) -> bool:
    with path.open("rb") as file:
        return re.search(rb"https?://", file.readline()) is not None


def _rows_without_heading(path: Path) -> Iterator[tuple[str, str]]:
    try:
        # Captions may hold quotation marks and other line separators, which mean nothing here.
        with path.open(encoding="utf-8", newline="\n") as file:
            lines = (line.rstrip("\r\n").split("\t") for line in file)
            probed = list(islice(lines, PROBED_LINES))
            url_column = _url_column(path, probed)
            for line in chain(probed, lines):
                yield (line[url_column], line[1 - url_column]) if len(line) == 2 else ("", "")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {error}.") from error


def _rows_of_table(path: Path, url_column: str | None, caption_column: str | None) -> Iterator[tuple[str, str]]:
    table = read_table(path)
    columns = [
        _column(table, url_column, url_candidates(table), "url"),
        _column(table, caption_column, caption_candidates(table), "caption"),
    ]
    print(f"Columns of {path.name}: {columns[0]}, {columns[1]}.")
    for batch in table.select_columns(columns).iter(ROWS_AT_A_TIME):
        yield from zip(*(batch[column] for column in columns), strict=True)


def _column(table: Dataset, column: str | None, candidates: list[str], kind: str) -> str:
    if column is None:
        if len(candidates) != 1:
            raise ValueError(
                f"No column, or several, may hold the {kind}s; the first line, which has no URL, names the columns "
                f"{', '.join(table.column_names)}. Set --{kind}_column."
            )
        (column,) = candidates
    check_column(table, column, f"--{kind}_column")
    if table.features[column] not in TEXT:
        raise ValueError(f"Column '{column}' holds {describe(table.features[column])}, not text. Set --{kind}_column.")
    return column


def _url_column(path: Path, rows: list[list[str]]) -> int:
    pairs = [row for row in rows if len(row) == 2]
    num_urls = [sum(_is_url(row[column]) for row in pairs) for column in (0, 1)]
    if not any(num_urls):
        raise ValueError(
            f"{path} is no list of URLs and captions: its lines should have two columns divided by a tab, one of them a "
            f"URL, or its first line the names of columns. The first line has {len(rows[0])}: {rows[0][0][:60]!r}"
        )
    column = num_urls.index(max(num_urls))
    form = ("URL, caption (as in CC12M)", "caption, URL (as in CC3M)")[column]
    print(f"Columns of {path.name}: {form}.")
    return column


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def write_url_table(
    url_list: Path, table: Path, url_column: str | None = None, caption_column: str | None = None
) -> tuple[int, int]:
    """Writes a list as parquet, which img2dataset reads. Returns the numbers of pairs and of rows left out."""
    num_pairs = num_left_out = 0
    rows = read_url_list(url_list, url_column, caption_column)
    schema = pa.schema({"url": pa.string(), "caption": pa.string()})
    with parquet.ParquetWriter(table, schema) as writer:
        while lines := list(islice(rows, ROWS_AT_A_TIME)):
            pairs = [row for row in lines if row is not None]
            num_pairs, num_left_out = num_pairs + len(pairs), num_left_out + len(lines) - len(pairs)
            writer.write_table(pa.Table.from_pylist(pairs, schema))
    if not num_pairs:
        raise ValueError(f"{url_list} has no row with a URL and a caption.")
    return num_pairs, num_left_out


def download_shards(args: argparse.Namespace) -> None:
    """Downloads the images of a list into WebDataset shards, from where an earlier call was cut off."""
    try:
        from img2dataset import download
    except ImportError as error:
        raise ValueError(f'Downloading needs img2dataset ({error}): pip install -e ".[prepare]"') from error
    if args.max_aspect_ratio < 1:
        raise ValueError(f"--max_aspect_ratio is at least 1, got {args.max_aspect_ratio:g}.")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=args.output_dir) as folder:
        table = Path(folder, "pairs.parquet")
        num_pairs, num_left_out = write_url_table(args.url_list, table, args.url_column, args.caption_column)
        print(f"{num_pairs:,} pairs; {num_left_out:,} rows without a URL and a caption are left out.", flush=True)
        download(
            url_list=str(table),
            input_format="parquet",
            url_col="url",
            caption_col="caption",
            output_folder=str(args.output_dir),
            output_format="webdataset",
            image_size=args.image_size,
            resize_mode="keep_ratio",
            resize_only_if_bigger=True,
            max_aspect_ratio=args.max_aspect_ratio,
            number_sample_per_shard=args.samples_per_shard,
            processes_count=args.processes,
            thread_count=args.threads,
        )
    print(_report(args.output_dir))


def _report(output_dir: Path) -> str:
    reasons = Counter()
    for path in sorted(output_dir.glob("*_stats.json")):
        reasons.update(json.loads(path.read_text(encoding="utf-8"))["status_dict"])
    num_pairs, num_images = reasons.total(), reasons.pop("success", 0)
    if not num_images:
        raise ValueError(f"None of {num_pairs:,} images could be downloaded: {_commonest(reasons)}.")
    missing = f" Of the others: {_commonest(reasons)}." if reasons else ""
    return (
        f"{num_images:,} of {num_pairs:,} images are there.{missing}\n"
        f"To train on them: --train_shards '{output_dir}/*.tar'"
    )


def _commonest(reasons: Counter) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(5))


def read_karpathy(path: Path) -> dict[str, list[tuple[str, list[str]]]]:
    """
    For each split of Karpathy's json of COCO, Flickr30k or Flickr8k: the images' paths, relative to the images' folder,
    each with its captions. COCO's `restval` is part of `train`, as is usual.
    """
    splits: dict[str, list[tuple[str, list[str]]]] = {split: [] for split in SPLITS}
    try:
        for image in json.loads(path.read_text(encoding="utf-8"))["images"]:
            split = "train" if image["split"] == "restval" else image["split"]
            captions = [sentence["raw"].strip() for sentence in image["sentences"]]
            image_path = os.path.join(image.get("filepath", ""), image["filename"])
            splits.setdefault(split, []).append((image_path, [caption for caption in captions if caption]))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a Karpathy json, which has `images`, each with `filename`, `split` and `sentences` of `raw` "
            f"({type(error).__name__}: {error})."
        ) from error
    if unknown := [split for split in splits if split not in SPLITS]:
        image_path, _ = splits[unknown[0]][0]
        raise ValueError(
            f"{path}: {image_path} is in a split {unknown[0]!r}, which is none of {', '.join(SPLITS)}, restval."
        )
    return splits


def write_caption_tables(args: argparse.Namespace) -> None:
    """Writes a table for each split, `SPLIT.jsonl`. Its rows have `image`, relative to the table, and `captions`."""
    splits = read_karpathy(args.karpathy_json)
    image_dir, output_dir = (args.image_dir or args.karpathy_json.parent).resolve(), args.output_dir.resolve()
    if image_dir.is_relative_to(output_dir):
        raise ValueError(
            f"{args.output_dir} holds the images. The tables need a folder of their own: `datasets` takes all files of a "
            "folder for data."
        )
    for split in args.splits:
        missing = [image for image, _ in splits[split] if not (image_dir / image).is_file()]
        if missing:
            raise ValueError(
                f"{len(missing):,} of {len(splits[split]):,} images of the split {split} are not in {image_dir}, the first "
                f"one: {missing[0]}. Set --image_dir, or write some of the splits only with --splits."
            )
    output_dir.mkdir(parents=True, exist_ok=True)
    for split in args.splits:
        table = output_dir / f"{split}.jsonl"
        with table.open("w", encoding="utf-8") as file:
            for image, captions in splits[split]:
                row = {"image": os.path.relpath(image_dir / image, output_dir), "captions": captions}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        num_captions = sum(len(captions) for _, captions in splits[split])
        print(f"{args.output_dir / table.name}: {len(splits[split]):,} images, {num_captions:,} captions")
