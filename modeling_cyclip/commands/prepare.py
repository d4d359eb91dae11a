"""Brings public collections of pairs into forms to train and evaluate on.

cyclip prepare urls Train_GCC-training.tsv data/cc3m
cyclip prepare karpathy dataset_coco.json data/coco --image_dir coco
"""

import argparse
import os
import sys
from pathlib import Path

from ..data.prepare import SPLITS, download_shards, write_caption_tables


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Bring public collections of pairs into forms to train and evaluate on.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)

    urls = commands.add_parser("urls", help="a list of URLs and captions (CC3M, CC12M) into WebDataset shards")
    urls.set_defaults(run=download_shards)
    urls.add_argument(
        "url_list",
        type=Path,
        help="table with a heading (csv, tsv, json, jsonl, parquet), or a tab-separated list without one: caption and URL, or "
        "URL and caption",
    )
    urls.add_argument("output_dir", type=Path, help="folder of the shards. One with a part of them is completed")
    urls.add_argument(
        "--url_column", help="column of URLs in a table with a heading (default: the one with a usual name)"
    )
    urls.add_argument("--caption_column", help="column of captions in it (default: the one with a usual name)")
    urls.add_argument(
        "--max_aspect_ratio",
        type=float,
        default=3,
        help="leave out images whose longer side is more than so many times the shorter one (default: 3, as in DataComp)",
    )
    urls.add_argument("--image_size", type=int, default=256, help="shorter side that larger images get (default: 256)")
    urls.add_argument(
        "--samples_per_shard", type=int, default=10_000, help="lines of the list for each shard (default: 10000)"
    )
    urls.add_argument("--processes", type=int, default=os.cpu_count(), help="processes (default: one for each core)")
    urls.add_argument("--threads", type=int, default=64, help="downloads at once in each process (default: 64)")

    karpathy = commands.add_parser("karpathy", help="Karpathy's json (COCO, Flickr30k) into tables of captions")
    karpathy.set_defaults(run=write_caption_tables)
    karpathy.add_argument("karpathy_json", type=Path, help="dataset_coco.json or dataset_flickr30k.json")
    karpathy.add_argument("output_dir", type=Path, help="folder of the tables, without the images")
    karpathy.add_argument(
        "--image_dir", type=Path, help="folder of the images; COCO's holds train2014 and val2014 (default: the json's)"
    )
    karpathy.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="splits to write (default: all)")
    # One help for all, which `cyclip` keeps in a file.
    parser.epilog = f"{urls.format_help()}\n{karpathy.format_help()}"
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    try:
        args.run(args)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
