"""Averages the weights of a checkpoint and of what was trained on from it.

cyclip merge openai/clip-vit-base-patch32 out merged
cyclip merge openai/clip-vit-base-patch32 out merged --end_weight 0.3
"""

import argparse
import sys
from pathlib import Path

from ..merge import merge_checkpoints


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(
        description="Write a checkpoint whose weights are the average of two others': (1 - w) * START + w * END, in float32 "
        "(WiSE-FT). Configuration, precision, tokenizer and image processor are END's.",
    )
    parser.add_argument("start", metavar="START", help="the checkpoint that END was trained on from: folder, Hub name")
    parser.add_argument("end", metavar="END", help="the fine-tuned checkpoint: folder, Hub name")
    parser.add_argument("new_folder", metavar="NEW_FOLDER", type=Path, help="the new folder")
    parser.add_argument("--end_weight", type=float, default=0.5, help="w, from 0 to 1. Default: 0.5")
    args = parser.parse_args(arguments)
    try:
        model = merge_checkpoints(args.start, args.end, args.new_folder, args.end_weight)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    print(
        f"{args.new_folder}: {type(model).__name__}, {model.num_parameters():,} parameters, "
        f"{1 - args.end_weight:g} * {args.start} + {args.end_weight:g} * {args.end}"
    )


if __name__ == "__main__":
    main()
