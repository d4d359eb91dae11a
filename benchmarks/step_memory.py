"""Peak memory and time of a training step, with the gradient cache and without it.

    python benchmarks/step_memory.py

A small ViT (the vision tower of `--model_size nano` on 32x32 images in patches of 8) and text tower see one contrastive
batch: forward, backward, AdamW. Each step is measured in a process of its own, both kinds in turn, and medians are taken.
Memory is the peak above weights, optimizer and inputs: of the allocator on a GPU, of the process elsewhere (Linux).
"""

import multiprocessing
import statistics

import torch
from accelerate import Accelerator
from machine import DEVICE, PeakMemory, described, script_parser, timed

from modeling_cyclip import CyCLIPConfig, CyCLIPModel
from modeling_cyclip.build_model import MODEL_SIZES
from modeling_cyclip.gradient_cache import cached_step


TEXT_LENGTH = 16


def small_config():
    size = MODEL_SIZES["nano"]
    return CyCLIPConfig(**{**size, "vision_config": {**size["vision_config"], "image_size": 32}})


def make_inputs(config, batch_size, text_length, device):
    vision, text = config.vision_config, config.text_config
    input_ids = torch.randint(text.eos_token_id, (batch_size, text_length), device=device)
    input_ids[:, -1] = text.eos_token_id
    pixel_values = torch.randn(batch_size, 3, vision.image_size, vision.image_size, device=device)
    return {"input_ids": input_ids, "pixel_values": pixel_values}


class TrainingStep:
    """A step of the Trainer without its logs; mixed precision is accelerate's."""

    def __init__(self, config, compiled=False, **accelerator_options):
        torch.manual_seed(0)
        self.accelerator = Accelerator(**accelerator_options)
        self.model = CyCLIPModel(config).train()
        optimizer = torch.optim.AdamW(self.model.parameters())
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        if compiled:
            self.wrapped = torch.compile(self.wrapped)

    def __call__(self, inputs, chunk_size):
        self.optimizer.zero_grad(set_to_none=False)
        if chunk_size is None:
            self.accelerator.backward(self.wrapped(**inputs, return_loss=True).loss)
        else:
            no_sync = lambda: self.accelerator.no_sync(self.wrapped)  # noqa: E731
            cached_step(self.wrapped, inputs, chunk_size, self.model.compute_loss, self.accelerator.backward, no_sync)
        self.optimizer.step()


def measure(batch_size, chunk_size, warmup_size, device):
    """Megabytes and seconds of one step."""
    config = small_config()
    step = TrainingStep(config, cpu=device == "cpu")
    # Gradients and moments are there from the first step on.
    step(make_inputs(config, warmup_size, TEXT_LENGTH, device), None)
    inputs = make_inputs(config, batch_size, TEXT_LENGTH, device)
    with PeakMemory(device) as peak:
        seconds, _ = timed(device, step, inputs, chunk_size)
    return peak.megabytes, seconds


def main():
    parser = script_parser(__doc__)
    parser.add_argument("--batch_size", type=int, default=4096)
    parser.add_argument("--chunk_size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default=DEVICE)
    args = parser.parse_args()

    print(f"{described(args.device)}; batch {args.batch_size}\n")
    print("| step | peak memory, MB | seconds |")
    print("|---|---|---|")
    steps = {"whole batch": None, f"gradient cache, chunks of {args.chunk_size}": args.chunk_size}
    measured = {title: [] for title in steps}
    for _ in range(args.repeats):
        for title, chunk_size in steps.items():
            with multiprocessing.get_context("spawn").Pool(1) as process:
                measured[title].append(process.apply(measure, (args.batch_size, chunk_size, 16, args.device)))
    medians = {
        title: [statistics.median(column) for column in zip(*rows, strict=True)] for title, rows in measured.items()
    }
    for title, (megabytes, seconds) in medians.items():
        print(f"| {title} | {megabytes:.0f} | {seconds:.1f} |")
    (whole_memory, whole_time), (cached_memory, cached_time) = medians.values()
    print(f"| cached / whole | 1/{whole_memory / cached_memory:.1f} | {cached_time / whole_time:.2f} |")


if __name__ == "__main__":
    main()
