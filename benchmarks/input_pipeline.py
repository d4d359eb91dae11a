"""Images a second of the input pipeline beside Pillow and the image processor, on the same JPEGs and as many processes.

    python benchmarks/input_pipeline.py --num_workers 2
    python benchmarks/input_pipeline.py --width 1280 --height 960

`plain`: `Image.open(...).convert("RGB")`, then the processor on the batch. `this library`: `CaptionedSamples` and
`CyCLIPDataCollator`, from the same files, and from a WebDataset shard of them. All in a DataLoader, one thread a process.
"""

import io
import platform
import statistics
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import PIL
import torch
from machine import script_parser, timed
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessor, CLIPProcessor

from modeling_cyclip import CyCLIPDataCollator
from modeling_cyclip.data.samples import CaptionedSamples, SampleCollator
from modeling_cyclip.data.shards import load_shards
from modeling_cyclip.data.tokenizer import train_tokenizer


def photo(random, width, height):
    """Noise at every scale, its contrast falling with the frequency, as in photographs."""
    layers = [
        Image.fromarray(random.integers(256, size=(side, side, 3), dtype=np.uint8)).resize((width, height))
        for side in (4, 16, 64, 256)
    ]
    mixed = sum(np.asarray(layer, dtype=float) / 2**step for step, layer in enumerate(layers))
    buffer = io.BytesIO()
    Image.fromarray((mixed / mixed.max() * 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_images(folder, args):
    random = np.random.default_rng(0)
    rows = []
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for number in range(args.images):
            path, caption = folder / f"{number:06d}.jpg", folder / f"{number:06d}.txt"
            path.write_bytes(photo(random, args.width, args.height))
            caption.write_text(f"a made-up picture, number {number} of {args.images}, without anything in particular")
            rows.append({"image": str(path), "caption": caption.read_text()})
            tar.add(path, path.name)
            tar.add(caption, caption.name)
    return rows


class PlainCollator:
    def __init__(self, processor):
        self.processor = processor

    def __call__(self, rows):
        images = [Image.open(row["image"]).convert("RGB") for row in rows]
        captions = [row["caption"] for row in rows]
        return self.processor(text=captions, images=images, padding=True, truncation=True, return_tensors="pt")


def read(loader):
    return [batch["pixel_values"] for batch in loader]


def main():
    parser = script_parser(__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--image_size", type=int, default=224, help="side of the images that the model sees")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:
        rows = write_images(Path(folder), args)
        tokenizer = train_tokenizer([row["caption"] for row in rows], vocab_size=600, max_length=77)
        size = {"size": {"shortest_edge": args.image_size}, "crop_size": args.image_size}
        processor = CLIPProcessor(CLIPImageProcessor(**size), tokenizer)
        collator = CyCLIPDataCollator(processor)
        # As the Trainer puts them together.
        options = {"min_image_size": collator.min_image_size, "process_image": collator.process_image}
        shard = load_shards([f"{folder}/*.tar"])
        contenders = {
            "plain": (rows, PlainCollator(processor)),
            "this library, files": (CaptionedSamples(rows, 0, **options), SampleCollator(collator)),
            "this library, a shard": (CaptionedSamples(shard, 0, **options), SampleCollator(collator)),
        }
        options = {"batch_size": args.batch_size, "num_workers": args.num_workers}
        # Workers outlive an epoch, so that their start is not timed.
        options |= {"persistent_workers": args.num_workers > 0}
        loaders = {
            name: DataLoader(dataset, collate_fn=collate, **options) for name, (dataset, collate) in contenders.items()
        }
        pixels = {name: torch.cat(read(loader)) for name, loader in loaders.items()}
        times = {name: [] for name in loaders}
        for _ in range(args.repeats):
            for name, loader in loaders.items():
                times[name].append(timed("cpu", read, loader)[0])
        num_bytes = statistics.mean(Path(row["image"]).stat().st_size for row in rows)

    print(
        f"{platform.machine()}, torch {torch.__version__}, Pillow {PIL.__version__}, "
        f"{args.images} JPEGs of {args.width}x{args.height} ({num_bytes / 1000:.0f} kB) to {args.image_size}, "
        f"{type(processor.image_processor).__name__}, {args.num_workers or 'no'} workers, median of {args.repeats}\n"
    )
    # Of 255 levels, not normalised.
    std = torch.tensor(processor.image_processor.image_std)[:, None, None] * 255
    print("| | images/s | ratio | levels off, mean | largest |\n|---|---|---|---|---|")
    plain = statistics.median(times["plain"])
    for name, measured in times.items():
        off = (pixels[name] - pixels["plain"]).abs() * std
        median = statistics.median(measured)
        print(
            f"| {name} | {args.images / median:.0f} | {plain / median:.2f} | {off.mean():.2f} | {off.max().round():.0f} |"
        )


if __name__ == "__main__":
    main()
