"""Time and memory of evaluation: this library beside the approach of the official scripts, and encoding beside the model.

    python benchmarks/evaluation_cost.py embeddings
    python benchmarks/evaluation_cost.py encoding

`embeddings`: embeddings to a file and back, then zero-shot classification and consistency by nearest neighbours. The official
scripts store pickles of Python lists and label one test image at a time; they are timed on a part of the rows and scaled.
`encoding`: images a second of `image_embeddings`, processing included, beside the bare model on tensors already processed.
"""

import pickle
import resource
import statistics
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from machine import DEVICE, described, script_parser, timed
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from modeling_cyclip.evaluation.consistency import consistency
from modeling_cyclip.evaluation.embeddings import image_embeddings
from modeling_cyclip.evaluation.zero_shot import zero_shot


NEIGHBOURS = (1, 3, 5, 10, 30)


def vote_of_row(labels):
    while True:
        (label, most), *others = Counter(labels).most_common()
        if not others or others[0][1] < most:
            return label
        labels = labels[:-1]


def label_row_by_row(images, classes, references, reference_labels):
    """One test image at a time, its neighbours' labels as Python lists."""
    agreements = dict.fromkeys(NEIGHBOURS, 0)
    for image in images:
        prediction = int((classes @ image).topk(10).indices[0])
        neighbours = reference_labels[(references @ image).topk(max(NEIGHBOURS)).indices].tolist()
        for k in NEIGHBOURS:
            agreements[k] += prediction == vote_of_row(neighbours[:k])
    return {k: count / len(images) for k, count in agreements.items()}


def through_pickle(data, path):
    path.write_bytes(pickle.dumps({name: rows.tolist() for name, rows in data.items()}))
    return {name: torch.tensor(rows) for name, rows in pickle.loads(path.read_bytes()).items()}


def through_safetensors(data, path):
    save_file(data, path)
    return load_file(path)


def compare_embeddings(args):
    generator = torch.Generator().manual_seed(0)
    sizes = {"images": args.images, "classes": args.classes, "references": args.references}
    data = {
        name: F.normalize(torch.randn(rows, args.dim, generator=generator), dim=-1) for name, rows in sizes.items()
    }
    labels = torch.randint(args.classes, (args.images,), generator=generator)
    reference_labels = torch.randint(args.classes, (args.references,), generator=generator)
    part = args.official_rows

    with tempfile.TemporaryDirectory() as folder:
        files_ours, data = timed(DEVICE, through_safetensors, data, Path(folder, "embeddings.safetensors"))
        images = {"images": data["images"][:part]}
        files_official, _ = timed(DEVICE, through_pickle, images, Path(folder, "embeddings.pkl"))
    files_official *= sum(sizes.values()) / part

    images, classes, references = (data[name].to(DEVICE) for name in sizes)
    labels, reference_labels = labels.to(DEVICE), reference_labels.to(DEVICE)

    def ours():
        zero_shot(images, classes, labels)
        return consistency(images, classes, references, reference_labels, NEIGHBOURS)

    rows_official, official = timed(DEVICE, label_row_by_row, images[:part], classes, references, reference_labels)
    rows_official *= args.images / part
    measure_ours, measures = timed(DEVICE, ours)
    # Both must say the same; rounding may turn a row where two neighbours are all but equally near.
    for k in NEIGHBOURS:
        assert abs(measures[f"k={k}"].scores[:part].mean().item() - official[k]) <= 2 / part

    print(f"{args.images:,} images, {args.classes:,} classes, {args.references:,} references, dimension {args.dim}\n")
    print("| | writing and reading (s) | zero-shot and consistency (s) | together (s) |\n|---|---|---|---|")
    print(f"| this library | {files_ours:.2f} | {measure_ours:.1f} | {files_ours + measure_ours:.1f} |")
    total = files_official + rows_official
    print(
        f"| official approach, scaled from {part:,} rows | {files_official:.1f} | {rows_official:.1f} | {total:.1f} |"
    )
    print(f"| ratio | | | {(files_ours + measure_ours) / total:.3f} |")
    print(f"\npeak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


def compare_encoding(args):
    config = CLIPConfig(vision_config={"patch_size": args.patch_size})
    model = CLIPModel(config).to(DEVICE).eval()
    side = config.vision_config.image_size
    processor = CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side), CLIPTokenizer())
    random = np.random.default_rng(0)
    images = [
        Image.fromarray(random.integers(256, size=(side, side, 3), dtype=np.uint8)) for _ in range(args.batch_size)
    ]
    images = images * args.batches
    pixels = [
        processor.image_processor(images[: args.batch_size], return_tensors="pt")["pixel_values"].to(DEVICE)
        for _ in range(args.batches)
    ]

    @torch.inference_mode()
    def bare():
        for batch in pixels:
            model.get_image_features(pixel_values=batch)

    def ours():
        image_embeddings(model, processor, images, args.batch_size, num_workers=args.num_workers)

    times = {bare: [], ours: []}
    for function in (bare, ours):
        function()
    for _ in range(args.repeats):
        for function, measured in times.items():
            measured.append(timed(DEVICE, function)[0])
    bare_speed, our_speed = (len(images) / statistics.median(measured) for measured in times.values())
    print("| bare model (images/s) | image_embeddings (images/s) | ratio |\n|---|---|---|")
    print(f"| {bare_speed:.1f} | {our_speed:.1f} | {our_speed / bare_speed:.3f} |")


def main():
    parser = script_parser(__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("embeddings")
    command.set_defaults(run=compare_embeddings)
    command.add_argument("--images", type=int, default=50_000)
    command.add_argument("--classes", type=int, default=1_000)
    command.add_argument("--references", type=int, default=50_000)
    command.add_argument("--dim", type=int, default=1024)
    command.add_argument("--official_rows", type=int, default=500, help="rows that the official approach is timed on")
    command = commands.add_parser("encoding")
    command.set_defaults(run=compare_encoding)
    command.add_argument("--patch_size", type=int, default=32, help="patch of a ViT-B with random weights")
    command.add_argument("--batch_size", type=int, default=16)
    command.add_argument("--batches", type=int, default=4)
    command.add_argument("--num_workers", type=int, default=0)
    command.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(f"{described(DEVICE)}\n")
    args.run(args)


if __name__ == "__main__":
    main()
