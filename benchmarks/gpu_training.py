"""Training a CyCLIPModel of ViT-B/32's size on one GPU, bf16, synthetic pairs: speed, utilisation, largest batch.

    python benchmarks/gpu_training.py

Model-FLOPs utilisation is pairs a second x the model's FLOPs a pair / the device's peak. Of a tower with L layers of width w
(and 4w in its MLPs) on n tokens, the forward pass takes n L (24 w^2 + 4 n w) FLOPs; to this come the patches and the two
projections, and the backward pass takes twice the forward one. The passes that the gradient cache repeats, the loss and the
optimizer count as none. The peak is the data sheet's for dense bf16.
"""

import gc

import torch
from machine import script_parser, timed
from step_memory import TrainingStep, make_inputs

from modeling_cyclip import CyCLIPConfig
from modeling_cyclip.build_model import MODEL_SIZES


# Dense bf16, from NVIDIA's data sheets; the first name that the device's contains.
PEAK_TFLOPS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312}


def tower_flops(width, layers, tokens):
    return tokens * layers * (24 * width**2 + 4 * tokens * width)


def flops_per_pair(config):
    """Of the model, forward and backward, for one image and a caption of the full context (77 tokens)."""
    vision, text = config.vision_config, config.text_config
    patches = (vision.image_size // vision.patch_size) ** 2
    forward = (
        tower_flops(vision.hidden_size, vision.num_hidden_layers, patches + 1)
        + tower_flops(text.hidden_size, text.num_hidden_layers, text.max_position_embeddings)
        + 2 * patches * 3 * vision.patch_size**2 * vision.hidden_size
        + 2 * config.projection_dim * (vision.hidden_size + text.hidden_size)
    )
    return 3 * forward


def known_peak(device_name):
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in device_name), None)


def pairs_per_second(config, batch_size, chunk_size, steps, device, **step_options):
    step = TrainingStep(config, mixed_precision="bf16", **step_options)
    inputs = make_inputs(config, batch_size, config.text_config.max_position_embeddings, device)
    # Compilation, the choice of kernels and the optimizer's moments.
    for _ in range(3):
        step(inputs, chunk_size)
    seconds, _ = timed(device, step, inputs, chunk_size, times=steps)
    return batch_size / seconds


def fits(step, config, batch_size, chunk_size, device):
    try:
        step(make_inputs(config, batch_size, config.text_config.max_position_embeddings, device), chunk_size)
        return True
    except torch.OutOfMemoryError:
        return False


def largest_batch(config, chunk_size, limit, device, **step_options):
    """The largest power of two, from 64 to the limit, that a step fits into memory with; 0 where none does."""
    step = TrainingStep(config, mixed_precision="bf16", **step_options)
    largest, batch_size = 0, 64
    while batch_size <= limit and fits(step, config, batch_size, chunk_size, device):
        largest, batch_size = batch_size, 2 * batch_size
        free_memory()
    return largest


def free_memory():
    gc.collect()
    torch.cuda.empty_cache()


def main():
    parser = script_parser(__doc__)
    parser.add_argument("--batch_size", type=int, default=1024)
    parser.add_argument("--chunk_size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--largest_batch_limit", type=int, default=131072)
    parser.add_argument("--peak_tflops", type=float, help="dense bf16 peak of the device (known for H100 and A100)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA device, and torch finds none")
    name = torch.cuda.get_device_name()
    peak = args.peak_tflops or known_peak(name)
    if peak is None:
        parser.error(f"the peak of a {name} is not known here: give --peak_tflops, dense bf16, from its data sheet")

    config = CyCLIPConfig(**MODEL_SIZES["base-32"])
    flops = flops_per_pair(config)
    print(f"{name}, {peak:.0f} TFLOP/s at most, torch {torch.__version__}; {flops / 1e9:.1f} GFLOPs a pair\n")
    print(f"| step, batch {args.batch_size} | pairs a second | utilisation |")
    print("|---|---|---|")
    for compiled in (False, True):
        for title, chunk_size in {"whole batch": None, f"chunks of {args.chunk_size}": args.chunk_size}.items():
            speed = pairs_per_second(config, args.batch_size, chunk_size, args.steps, "cuda", compiled=compiled)
            title += ", torch.compile" * compiled
            print(f"| {title} | {speed:.0f} | {100 * speed * flops / (1e12 * peak):.1f} % |", flush=True)
            free_memory()
    print("\n| step | largest batch by doubling |")
    print("|---|---|")
    for title, chunk_size in {"whole batch": None, f"chunks of {args.chunk_size}": args.chunk_size}.items():
        largest = largest_batch(config, chunk_size, args.largest_batch_limit, "cuda")
        reached = " (the limit asked for)" if 2 * largest > args.largest_batch_limit else ""
        print(f"| {title} | {largest}{reached} |", flush=True)
        free_memory()


if __name__ == "__main__":
    main()
