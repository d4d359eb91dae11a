"""Images a second of the input pipelines of training and evaluation beside others, on the same JPEGs and as many processes.

    python benchmarks/input_pipeline.py --num_workers 2
    python benchmarks/input_pipeline.py --num_workers 2 --leave_bytes
    python benchmarks/input_pipeline.py --width 1280 --height 960

`Pillow loop`: a data set with open_clip's transform for evaluation, which Pillow computes: the shorter side resized by bicubic
interpolation, the middle cropped, bytes to floats, normalised. `webdataset`: the same transform in open_clip's pipeline, from
shards (`pip install webdataset`). `image processor`: `Image.open(...).convert("RGB")`, then transformers' processor on the
batch. `this library`: what the Trainer and the evaluation put together, from the same files and shards; also as it is
without simplejpeg. All make normalised pixel values, and all but the evaluation tokens, by the same fast tokenizer, in a
DataLoader with one thread a process. This library normalises in the main process, on the model's device: `--leave_bytes`
leaves that out, as where a GPU does it. Repeats are interleaved. Ratios are taken within a repeat. Memory is the peak of making a
batch in a process of its own, above what that had before (Linux).
"""

import io
import multiprocessing
import platform
import statistics
import tarfile
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import PIL
import torch
from machine import PeakMemory, script_parser, timed
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPImageProcessorPil, CLIPProcessor

from modeling_cyclip import CyCLIPDataCollator
from modeling_cyclip.data import images
from modeling_cyclip.data.data_collator import normalize
from modeling_cyclip.data.samples import CaptionedSamples, SampleCollator
from modeling_cyclip.data.shards import load_shards
from modeling_cyclip.data.tokenizer import train_tokenizer
from modeling_cyclip.evaluation.embeddings import _ImageBatches


try:
    import webdataset
except ImportError:
    webdataset = None


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
    """Files, and as many shards as divide evenly among the workers, in the same order."""
    random = np.random.default_rng(0)
    rows = []
    num_shards = max(1, args.num_workers)
    for shard in range(num_shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard * args.images // num_shards, (shard + 1) * args.images // num_shards):
                path, caption = folder / f"{number:06d}.jpg", folder / f"{number:06d}.txt"
                path.write_bytes(photo(random, args.width, args.height))
                caption.write_text(
                    f"a made-up picture, number {number} of {args.images}, without anything in particular"
                )
                rows.append({"image": str(path), "caption": caption.read_text()})
                tar.add(path, path.name)
                tar.add(caption, caption.name)
    return rows


class Transform:
    """open_clip's for evaluation, without torchvision."""

    def __init__(self, image_processor):
        self.side = image_processor.crop_size["height"]
        self.mean, self.std = (
            torch.tensor(values)[:, None, None] for values in (image_processor.image_mean, image_processor.image_std)
        )

    def __call__(self, image):
        width, height = (int(self.side * side / min(image.size)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - self.side) / 2), round((height - self.side) / 2)
        image = image.crop((left, top, left + self.side, top + self.side)).convert("RGB")
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return pixels.sub_(self.mean).div_(self.std)


class Tokens:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, captions):
        return self.tokenizer(captions, padding=True, truncation=True, return_tensors="pt")


class PillowLoop(Dataset):
    def __init__(self, rows, transform):
        self.rows, self.transform = rows, transform

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        return self.transform(Image.open(row["image"])), row["caption"]


class PairCollator:
    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, pairs):
        pixels, captions = zip(*pairs, strict=True)
        return {**self.tokens(list(captions)), "pixel_values": torch.stack(pixels)}


class ProcessorCollator:
    def __init__(self, processor):
        self.processor = processor

    def __call__(self, rows):
        images = [Image.open(row["image"]).convert("RGB") for row in rows]
        captions = [row["caption"] for row in rows]
        return self.processor(text=captions, images=images, padding=True, truncation=True, return_tensors="pt")


class WithoutSimplejpeg(CaptionedSamples):
    def __getitems__(self, keys):
        with mock.patch.object(images, "decode_jpeg", None):
            return super().__getitems__(keys)


class EvaluationBatches(_ImageBatches):
    def __getitem__(self, rows):
        return super().__getitem__(rows)[0]


def contenders(folder, rows, processor, args):
    """By name: the arguments of a DataLoader."""
    tokens, transform = Tokens(processor.tokenizer), Transform(processor.image_processor)
    pairs = PairCollator(tokens)
    # As the Trainer puts them together.
    collator = CyCLIPDataCollator(processor, normalize=False)
    sample_options = {"min_image_size": collator.min_image_size, "process_image": collator.process_image}
    by_rows = {"batch_size": args.batch_size}
    order = torch.arange(len(rows)).split(args.batch_size)
    evaluation = EvaluationBatches([row["image"] for row in rows], processor.image_processor)
    found = {"Pillow loop": {"dataset": PillowLoop(rows, transform), "collate_fn": pairs, **by_rows}}
    if webdataset is not None:
        shards = sorted(str(path) for path in folder.glob("*.tar"))
        pipeline = webdataset.DataPipeline(
            webdataset.SimpleShardList(shards),
            webdataset.split_by_worker,
            webdataset.tarfile_to_samples(),
            webdataset.decode("pilrgb"),
            webdataset.rename(image="jpg", text="txt"),
            webdataset.map_dict(image=transform),
            webdataset.to_tuple("image", "text"),
            webdataset.batched(args.batch_size, collation_fn=pairs),
        )
        found["webdataset"] = {"dataset": pipeline, "batch_size": None}
    return found | {
        "image processor": {"dataset": rows, "collate_fn": ProcessorCollator(processor), **by_rows},
        "this library, files": {
            "dataset": CaptionedSamples(rows, 0, **sample_options),
            "collate_fn": SampleCollator(collator),
            **by_rows,
        },
        "this library, files, random crops": {
            "dataset": CaptionedSamples(rows, 0, random_resized_crop=(0.9, 1.0), **sample_options),
            "collate_fn": SampleCollator(collator),
            **by_rows,
        },
        "this library, shards": {
            "dataset": CaptionedSamples(load_shards([f"{folder}/*.tar"]), 0, **sample_options),
            "collate_fn": SampleCollator(collator),
            **by_rows,
        },
        "this library, files, without simplejpeg": {
            "dataset": WithoutSimplejpeg(rows, 0, **sample_options),
            "collate_fn": SampleCollator(collator),
            **by_rows,
        },
        "this library, evaluation": {
            "dataset": evaluation,
            "batch_size": None,
            "sampler": [part.tolist() for part in order],
        },
    }


def read(loader, image_processor):
    # This library's batches hold bytes. The Trainer and the evaluation normalise them on the model's device.
    return [normalize(image_processor, batch["pixel_values"]) for batch in loader]


def run_through(loader, image_processor, args):
    for batch in loader:
        if not args.leave_bytes:
            normalize(image_processor, batch["pixel_values"])


def peak_of_a_batch(loader):
    """Megabytes, in a process that has made a batch before, as a worker has."""
    with multiprocessing.get_context("fork").Pool(1, initializer=torch.set_num_threads, initargs=(1,)) as process:
        return process.apply(_peak, (loader,))


def _peak(loader):
    next(iter(loader))
    with PeakMemory("cpu") as peak:
        next(iter(loader))
    return peak.megabytes


def quartiles(values):
    return statistics.quantiles(values, n=4, method="inclusive")


def main():
    parser = script_parser(__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--image_size", type=int, default=224, help="side of the images that the model sees")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--leave_bytes", action="store_true", help="do not normalise this library's batches")
    args = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write_images(folder, args)
        tokenizer = train_tokenizer([row["caption"] for row in rows], vocab_size=600, max_length=77)
        size = {"size": {"shortest_edge": args.image_size}, "crop_size": args.image_size}
        image_processor = CLIPImageProcessorPil(**size)
        found = contenders(folder, rows, CLIPProcessor(image_processor, tokenizer), args)
        # Workers outlive an epoch, so that their start is not timed.
        options = {"num_workers": args.num_workers, "persistent_workers": args.num_workers > 0}
        loaders = {name: DataLoader(**arguments, **options) for name, arguments in found.items()}
        memory = {name: peak_of_a_batch(DataLoader(**arguments)) for name, arguments in found.items()}
        pixels = {name: torch.cat(read(loader, image_processor)) for name, loader in loaders.items()}
        times = {name: [] for name in loaders}
        for _ in range(args.repeats):
            for name, loader in loaders.items():
                times[name].append(timed("cpu", run_through, loader, image_processor, args)[0])
        num_bytes = statistics.mean(Path(row["image"]).stat().st_size for row in rows)

    decoder = "without simplejpeg" if images.decode_jpeg is None else "with simplejpeg"
    print(
        f"{platform.machine()}, torch {torch.__version__}, Pillow {PIL.__version__}, {decoder}, "
        f"{args.images} JPEGs of {args.width}x{args.height} ({num_bytes / 1000:.0f} kB) to {args.image_size}, "
        f"{args.num_workers or 'no'} workers, medians of {args.repeats} and their quartiles\n"
    )
    # Of 255 levels, not normalised.
    std = torch.tensor(image_processor.image_std)[:, None, None] * 255
    print("| | images/s | ratio | peak of a batch, MB | levels off, mean | largest |\n|---|---|---|---|---|---|")
    # Workers hand the batches of webdataset's shards in another order.
    expected = pixels["image processor"]
    for name, measured in times.items():
        speed = quartiles([args.images / seconds for seconds in measured])
        ratio = quartiles([plain / own for plain, own in zip(times["Pillow loop"], measured, strict=True)])
        off = (pixels[name] - expected).abs() * std
        levels = "|" if name == "webdataset" else f"{off.mean():.2f} | {off.max().round():.0f}"
        print(
            f"| {name} | {speed[1]:.0f} ({speed[0]:.0f} to {speed[2]:.0f}) | {ratio[1]:.2f} ({ratio[0]:.2f} to "
            f"{ratio[2]:.2f}) | {memory[name]:.0f} | {levels} |"
        )
    if webdataset is None:
        print("\nwebdataset is not installed, and left out.")


if __name__ == "__main__":
    main()
