"""Brings public collections of pairs into forms to train and evaluate on; the work of `cyclip prepare`."""

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
from pyarrow import parquet


# The first lines of a list tell which column holds the URLs.
PROBED_LINES = 1000
ROWS_AT_A_TIME = 100_000
SPLITS = ("train", "val", "test")


def read_url_list(path: Path) -> Iterator[dict[str, str] | None]:
    """`url` and `caption` of every line of a tab-separated list without a heading; `None` for a line that lacks either."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist.")
    try:
        # Captions may hold quotation marks and other line separators, which mean nothing here.
        with path.open(encoding="utf-8", newline="\n") as file:
            rows = (line.rstrip("\r\n").split("\t") for line in file)
            probed = list(islice(rows, PROBED_LINES))
            url_column = _url_column(path, probed)
            for row in chain(probed, rows):
                url, caption = (row[url_column], row[1 - url_column].strip()) if len(row) == 2 else ("", "")
                yield {"url": url, "caption": caption} if _is_url(url) and caption else None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {error}.") from error


def _url_column(path: Path, rows: list[list[str]]) -> int:
    if not rows:
        raise ValueError(f"{path} is empty.")
    pairs = [row for row in rows if len(row) == 2]
    num_urls = [sum(_is_url(row[column]) for row in pairs) for column in (0, 1)]
    if not any(num_urls):
        raise ValueError(
            f"{path} is no list of URLs and captions: its lines should have two columns divided by a tab, one of them a "
            f"URL. The first line has {len(rows[0])}: {rows[0][0][:60]!r}"
        )
    column = num_urls.index(max(num_urls))
    form = ("URL, caption (as in CC12M)", "caption, URL (as in CC3M)")[column]
    print(f"Columns of {path.name}: {form}.")
    return column


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def write_url_table(url_list: Path, table: Path) -> tuple[int, int]:
    """Writes a list as parquet, which img2dataset reads. Returns the numbers of pairs and of lines left out."""
    num_pairs = num_left_out = 0
    rows = read_url_list(url_list)
    schema = pa.schema({"url": pa.string(), "caption": pa.string()})
    with parquet.ParquetWriter(table, schema) as writer:
        while lines := list(islice(rows, ROWS_AT_A_TIME)):
            pairs = [row for row in lines if row is not None]
            num_pairs, num_left_out = num_pairs + len(pairs), num_left_out + len(lines) - len(pairs)
            writer.write_table(pa.Table.from_pylist(pairs, schema))
    return num_pairs, num_left_out


def download_shards(args: argparse.Namespace) -> None:
    """Downloads the images of a list into WebDataset shards, from where an earlier call was cut off."""
    try:
        from img2dataset import download
    except ImportError as error:
        raise ValueError(f'Downloading needs img2dataset ({error}): pip install -e ".[prepare]"') from error
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=args.output_dir) as folder:
        table = Path(folder, "pairs.parquet")
        num_pairs, num_left_out = write_url_table(args.url_list, table)
        print(f"{num_pairs:,} pairs; {num_left_out:,} lines without a URL and a caption are left out.", flush=True)
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
