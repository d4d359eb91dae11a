"""Peak memory and processor time of making one batch from large images, shrunk as each is opened, or all decoded first.

    python benchmarks/batch_memory.py

`all decoded first`: what a collator of one's own gets, PIL images at their full size. `one by one`: what the Trainer does
with a `CyCLIPDataCollator`. Each batch is made in a process of its own, as in a worker of the dataloader, both kinds in
turn, and medians are taken. Memory is the peak above what the process had before (Linux), the finished tensors included.
"""

import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
import torch
from machine import PeakMemory, described, script_parser
from PIL import Image
from transformers import CLIPImageProcessor, CLIPProcessor

from modeling_cyclip import CyCLIPDataCollator
from modeling_cyclip.data.samples import CaptionedSamples, SampleCollator
from modeling_cyclip.data.tokenizer import train_tokenizer


CAPTION = "a made-up picture, number {}"
CONTENDERS = ("all decoded first", "one by one")


def write_image(path, args):
    # Rows that repeat keep the file small; decoded it is as large as any.
    row = np.random.default_rng(0).integers(256, size=(1, args.width, 3), dtype=np.uint8)
    Image.fromarray(row.repeat(args.height, axis=0)).save(path, compress_level=1)


def measure(contender, image, args):
    """Megabytes and processor seconds of a batch, and its pixels' bytes."""
    torch.set_num_threads(1)
    captions = [CAPTION.format(number) for number in range(args.batch_size)]
    tokenizer = train_tokenizer(captions, vocab_size=600, max_length=77)
    size = {"size": {"shortest_edge": args.image_size}, "crop_size": args.image_size}
    collator = CyCLIPDataCollator(CLIPProcessor(CLIPImageProcessor(**size), tokenizer))
    process_image = collator.process_image if contender == "one by one" else None
    rows = [{"image": image, "caption": caption} for caption in captions]
    samples = CaptionedSamples(rows, 0, collator.min_image_size, process_image=process_image)
    collate = SampleCollator(collator)
    collate(samples.__getitems__([0]))  # what a first image loads is no part of a batch
    with PeakMemory("cpu") as peak:
        start = time.process_time()
        batch = collate(samples.__getitems__(list(range(args.batch_size))))
        seconds = time.process_time() - start
    return peak.megabytes, seconds, batch["pixel_values"].nbytes / 1e6


def main():
    parser = script_parser(__doc__)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--width", type=int, default=4000)
    parser.add_argument("--height", type=int, default=3000)
    parser.add_argument("--image_size", type=int, default=224, help="side of the images that the model sees")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    measured = {contender: [] for contender in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        image = str(Path(folder) / "large.png")
        write_image(image, args)
        for _ in range(args.repeats):
            for contender in CONTENDERS:
                with multiprocessing.get_context("spawn").Pool(1) as process:
                    measured[contender].append(process.apply(measure, (contender, image, args)))
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in measured.items()
    }
    finished = medians["one by one"][2]
    print(
        f"{described('cpu')}, Pillow {PIL.__version__}; {args.batch_size} PNGs of {args.width}x{args.height} "
        f"({3 * args.width * args.height / 1e6:.0f} MB decoded) to {args.image_size}; the finished pixels are "
        f"{finished:.0f} MB; median of {args.repeats}\n"
    )
    print("| images are shrunk | peak memory, MB | processor seconds |\n|---|---|---|")
    for name, (megabytes, seconds, _) in medians.items():
        print(f"| {name} | {megabytes:.0f} | {seconds:.1f} |")
    (before, _, _), (after, _, _) = medians.values()
    print(f"\n1/{before / after:.1f} of the memory")


if __name__ == "__main__":
    main()
