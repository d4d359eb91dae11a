"""Trains on one GPU: checks the precisions, the gradient cache and resuming there, and measures steps, loss and copies.

    python benchmarks/gpu_training.py
    python benchmarks/gpu_training.py --parts step loss --output figures.json

Needs a CUDA device and no data: pictures are drawn. A part that fails is named, does not end the others, and makes the exit
status 1. The parts:

- `synchronisation`: how often a step makes the host wait for the GPU, and in which lines. Steps that log are not counted.
- `precision`: fp32, bf16 and fp16, with the gradient cache and without: losses, gradients of the first step, weights.
- `step`: a ViT-B/32 in bf16, the Trainer beside a plain loop with transformers' CLIPModel: time, memory, utilisation.
- `loss`: this library's loss beside dense ones, forward and backward.
- `transfer`: pixels to the GPU as float32 and as bytes.
- `resume`: a training that SIGTERM ends and that goes on from its checkpoint, beside one without a break.
- `compile`: the steps with torch.compile, which takes a minute to compile. By default left out, as is the next.
- `largest_batch`: the largest batch that fits into memory, by doubling, with the gradient cache and without.

Utilisation is that of `model_flops.py`.
"""

import collections
import copy
import gc
import itertools
import json
import math
import os
import signal
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from functools import cache, partial
from pathlib import Path

import accelerate
import torch
import torch.nn.functional as F
import transformers
from loss_cost import CONTENDERS, dense_clip
from machine import PeakMemory, described, script_parser, timed
from model_flops import flops_per_pair, known_peak
from step_memory import TrainingStep, make_inputs
from trainings import RandomPictures, quiet, shape_pairs, training_arguments
from transformers import CLIPModel, TrainerCallback

import modeling_cyclip
from modeling_cyclip import CyCLIPConfig, CyCLIPModel, CyCLIPTrainer
from modeling_cyclip.build_model import MODEL_SIZES, ModelArguments, build_model_and_processor
from modeling_cyclip.data.shapes import SIDE


PRECISIONS = {"fp32": {}, "bf16": {"bf16": True}, "fp16": {"fp16": True}}
# How far gradients with the cache may be from those without, relative to their norm. In fp32, cuDNN convolves patches in TF32.
GRADIENT_TOLERANCE = {"fp32": 1e-3, "bf16": 2**-5, "fp16": 2**-8}

SMALL_BATCH, SMALL_CHUNK, SMALL_SCALE = 256, 64, 2.0**10
# What the kernels are chosen and the optimizer's moments made in.
WARMUP_STEPS = 5


# Small trainings on drawn shapes.


@cache
def small_model_and_processor(attention):
    torch.manual_seed(0)
    arguments = ModelArguments(model_size="nano", image_size=SIDE, vocab_size=600, attn_implementation=attention)
    return build_model_and_processor(arguments, [pair["caption"] for pair in shape_pairs()])


def small_trainer(output_dir, steps, precision="fp32", chunk_size=None, callbacks=(), attention=None, **options):
    model, processor = small_model_and_processor(attention)
    options = {"save_strategy": "no", "logging_steps": 1, **PRECISIONS[precision], **options}
    trainer = CyCLIPTrainer(
        copy.deepcopy(model),
        training_arguments(output_dir, steps, SMALL_BATCH, gradient_cache_chunk_size=chunk_size, **options),
        shape_pairs(),
        processing_class=processor,
        callbacks=list(callbacks),
    )
    if (scaler := trainer.accelerator.scaler) is not None:
        # From its usual start, a whole batch overflows for more steps than its chunks do.
        scaler.load_state_dict({**scaler.state_dict(), "scale": SMALL_SCALE})
    return quiet(trainer)


def weights(model):
    return {name: tensor.detach().double().cpu() for name, tensor in model.state_dict().items()}


def relative_difference(tensors, others):
    """Of two dictionaries of tensors, each as one vector: the norm of their difference by that of the second."""
    squares = sum((tensors[name] - other).square().sum() for name, other in others.items())
    return math.sqrt(squares / sum(other.square().sum() for other in others.values()))


# synchronisation


class Synchronisations(TrainerCallback):
    """Counts what makes the host wait from the end of one step to that of another, by place in the code."""

    def __init__(self, first_step, last_step):
        self.first_step, self.last_step = first_step, last_step
        self.places = collections.Counter()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.first_step:
            torch.cuda.set_sync_debug_mode("warn")
        elif state.global_step == self.last_step:
            torch.cuda.set_sync_debug_mode("default")

    def add(self, message, *_):
        if "synchronizing CUDA operation" in str(message):
            self.places[place(traceback.extract_stack())] += 1


def place(stack):
    """The innermost four lines of this library, accelerate, transformers and torch, the innermost first."""
    packages = {Path(module.__file__).parent for module in (modeling_cyclip, accelerate, transformers, torch)}
    lines = [
        f"{Path(frame.filename).relative_to(package.parent)}:{frame.lineno} {frame.name}"
        for frame in reversed(stack)
        for package in packages
        if Path(frame.filename).is_relative_to(package)
    ]
    return " < ".join(lines[:4])


def count_synchronisations(precision, chunk_size):
    steps = 10
    counted = Synchronisations(WARMUP_STEPS, WARMUP_STEPS + steps)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = counted.add
        # One step more: the last one ends with a log.
        trainer = small_trainer(folder, WARMUP_STEPS + steps + 1, precision, chunk_size, [counted], logging_steps=1000)
        try:
            trainer.train()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = {where: number / steps for where, number in counted.places.most_common()}
    return {"a step": sum(places.values()), "places": places}


def synchronisation_part(args):
    return {
        f"{precision}, {title}": partial(count_synchronisations, precision, chunk_size)
        for precision in PRECISIONS
        for title, chunk_size in (("whole batch", None), ("gradient cache", SMALL_CHUNK))
    }


# precision


class FirstGradients(TrainerCallback):
    """The gradients of the first step in which all are finite. Those of fp16 are scaled."""

    def __init__(self):
        self.step, self.gradients = None, {}

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        gradients = {name: parameter.grad.double() for name, parameter in model.named_parameters()}
        if self.step is None and all(gradient.isfinite().all() for gradient in gradients.values()):
            self.step, self.gradients = state.global_step, {name: g.cpu() for name, g in gradients.items()}


def compare_cache(precision, steps=30):
    trained, gradients, losses = {}, {}, {}
    for chunk_size in (None, SMALL_CHUNK):
        first = FirstGradients()
        with tempfile.TemporaryDirectory() as folder:
            trainer = small_trainer(folder, steps, precision, chunk_size, [first])
            before = weights(trainer.model)
            trainer.train()
        trained[chunk_size], gradients[chunk_size] = weights(trainer.model), first
        losses[chunk_size] = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    whole, cached = trained.values()
    if len({first.step for first in gradients.values()}) > 1:
        raise AssertionError(f"First finite gradients at steps {[first.step for first in gradients.values()]}")
    gradient_difference = relative_difference(gradients[SMALL_CHUNK].gradients, gradients[None].gradients)
    change = {name: whole[name] - before[name] for name in whole}
    # Attention does not depend on the bias of its keys, whose gradient is rounding alone.
    learnt = [name for name in whole if not name.endswith("k_proj.bias")]
    return {
        "loss, first": losses[None][0],
        "loss, last": losses[None][-1],
        "loss, last, cached": losses[SMALL_CHUNK][-1],
        "losses finite": all(math.isfinite(loss) for curve in losses.values() for loss in curve),
        "gradients differ by": gradient_difference,
        "within tolerance": gradient_difference <= GRADIENT_TOLERANCE[precision],
        "weights differ by": relative_difference(cached, whole),
        "most, in one tensor": max(relative_difference({name: cached[name]}, {name: whole[name]}) for name in learnt),
        "by, of their change": relative_difference({name: cached[name] - before[name] for name in whole}, change),
        "steps skipped": steps - optimizer_steps(trainer),
        "losses": losses[None],
        "losses, cached": losses[SMALL_CHUNK],
    }


def optimizer_steps(trainer):
    return int(max(state["step"] for state in trainer.optimizer.state.values()))


def precision_part(args):
    return {name: partial(compare_cache, name) for name in PRECISIONS}


# resume


class SignalAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def break_and_resume(precision, attention=None, steps=20, **options):
    environment = dict(os.environ)
    make = partial(small_trainer, steps=steps, precision=precision, attention=attention, **options)
    try:
        with tempfile.TemporaryDirectory() as whole_folder, tempfile.TemporaryDirectory() as folder:
            whole, again = make(whole_folder), make(whole_folder)
            whole.train()
            again.train()
            broken = make(folder, callbacks=[SignalAt(steps // 2)])
            try:
                broken.train()
                raise AssertionError("SIGTERM did not end the training")
            except SystemExit as exit:
                status, broken_at = exit.code, broken.state.global_step
            resumed = make(folder)
            resumed.train(resume_from_checkpoint=True)
    finally:
        # What full_determinism sets.
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
        os.environ.clear()
        os.environ.update(environment)
    scalers = [trainer.accelerator.scaler for trainer in (whole, resumed)]
    scales = [None if scaler is None else scaler.state_dict() for scaler in scalers]
    return {
        "exit status": status,
        "broken at step": broken_at,
        "ended at step": resumed.state.global_step,
        "largest difference": largest_difference(resumed.model, whole.model),
        "of two runs without a break": largest_difference(again.model, whole.model),
        "scaler as without a break": scales[0] == scales[1],
        "scaler": scales[1],
    }


def largest_difference(model, other):
    others = weights(other)
    return max((tensor - others[name]).abs().max().item() for name, tensor in weights(model).items())


def resume_part(args):
    return {
        "fp32, full_determinism": partial(break_and_resume, "fp32", full_determinism=True),
        "fp32, full_determinism, eager": partial(break_and_resume, "fp32", attention="eager", full_determinism=True),
        **{name: partial(break_and_resume, name) for name in PRECISIONS},
        "fp16, gradient cache": partial(break_and_resume, "fp16", chunk_size=SMALL_CHUNK),
    }


# step


class StepTimes(TrainerCallback):
    """Milliseconds from the end of one step to that of the next as the GPU sees it, without making the host wait."""

    def __init__(self):
        self.ends = []

    def mark(self):
        self.ends.append(torch.cuda.Event(enable_timing=True))
        self.ends[-1].record()

    def on_step_end(self, args, state, control, **kwargs):
        self.mark()

    def milliseconds(self):
        torch.cuda.synchronize()
        ends = self.ends[WARMUP_STEPS - 1 :]
        return [start.elapsed_time(end) for start, end in itertools.pairwise(ends)]


class OneBatchTrainer(CyCLIPTrainer):
    """Has its batch on the GPU from the start: what is left is the model and the Trainer."""

    batch = None

    def get_train_dataloader(self):
        return [self.batch] * self.args.max_steps


def base_config():
    return CyCLIPConfig(**MODEL_SIZES["base-32"])


def base_inputs(config, batch_size):
    inputs = make_inputs(config, batch_size, config.text_config.max_position_embeddings, "cuda")
    return {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}


def summarised(milliseconds, peak, args):
    quartiles = statistics.quantiles(milliseconds, n=4)
    speed = args.batch_size / (statistics.median(milliseconds) / 1000)
    return {
        "ms, median": statistics.median(milliseconds),
        "lower quartile": quartiles[0],
        "upper quartile": quartiles[2],
        "pairs a second": speed,
        "utilisation, %": 100 * speed * flops_per_pair(base_config()) / (1e12 * args.peak_tflops),
        "peak memory, GB": peak.megabytes / 1000,
    }


def plain_loop(model_class, args):
    """What one writes by hand, with the Trainer's optimizer and precision."""
    with PeakMemory("cuda") as peak:
        torch.manual_seed(0)
        config = base_config()
        model = model_class(config).to("cuda").train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.1, fused=True)
        inputs, times = base_inputs(config, args.batch_size), StepTimes()
        for _ in range(WARMUP_STEPS + args.steps):
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(**inputs, return_loss=True).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times.mark()
        milliseconds = times.milliseconds()
    return summarised(milliseconds, peak, args)


def trainer_loop(args, chunk_size=None, **options):
    with PeakMemory("cuda") as peak, tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model, times = CyCLIPModel(base_config()), StepTimes()
        pairs = RandomPictures(1, 2 * args.batch_size)
        trainer = OneBatchTrainer(
            model, bf16_arguments(folder, args, chunk_size, **options), pairs, data_collator=list, callbacks=[times]
        )
        trainer.batch = base_inputs(model.config, args.batch_size)
        quiet(trainer).train()
        milliseconds = times.milliseconds()
    return summarised(milliseconds, peak, args)


def trainer_with_workers(args):
    """From pictures in memory to the step. Of JPEG files, see input_pipeline.py."""
    with PeakMemory("cuda") as peak, tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        pairs = RandomPictures(224, (WARMUP_STEPS + args.steps) * args.batch_size)
        model, processor = build_model_and_processor(ModelArguments(model_size="base-32"), pairs.captions)
        times = StepTimes()
        options = {"dataloader_num_workers": args.num_workers, "dataloader_prefetch_factor": 2}
        trainer = CyCLIPTrainer(
            model,
            bf16_arguments(folder, args, **options),
            pairs,
            processing_class=processor,
            callbacks=[times],
        )
        quiet(trainer).train()
        milliseconds = times.milliseconds()
    return summarised(milliseconds, peak, args)


def bf16_arguments(folder, args, chunk_size=None, **options):
    return training_arguments(
        folder,
        WARMUP_STEPS + args.steps,
        args.batch_size,
        bf16=True,
        gradient_cache_chunk_size=chunk_size,
        save_strategy="no",
        logging_steps=1000,
        **options,
    )


def step_part(args):
    return {
        "plain loop, CLIPModel": partial(plain_loop, CLIPModel, args),
        "plain loop, CyCLIPModel": partial(plain_loop, CyCLIPModel, args),
        "CyCLIPTrainer": partial(trainer_loop, args),
        f"CyCLIPTrainer, chunks of {args.chunk_size}": partial(trainer_loop, args, args.chunk_size),
        f"CyCLIPTrainer, {args.num_workers} workers": partial(trainer_with_workers, args),
    }


def compile_part(args):
    return {
        "CyCLIPTrainer": partial(trainer_loop, args, torch_compile=True),
        f"CyCLIPTrainer, chunks of {args.chunk_size}": partial(
            trainer_loop, args, args.chunk_size, torch_compile=True
        ),
    }


# loss


def in_bf16(image_embeds, text_embeds, logit_scale):
    with torch.autocast("cuda", torch.bfloat16):
        return dense_clip(image_embeds, text_embeds, logit_scale)


def loss_cost(loss_function, n, dim=512, repeats=10):
    torch.manual_seed(0)
    inputs = [F.normalize(torch.randn(n, dim, device="cuda"), dim=-1).requires_grad_() for _ in range(2)]
    inputs.append(torch.tensor(14.3, device="cuda", requires_grad=True))
    passes = []
    with PeakMemory("cuda") as peak:
        for _ in range(repeats + 2):
            times = StepTimes()
            times.mark()
            loss = loss_function(*inputs)
            times.mark()
            loss.backward()
            times.mark()
            torch.cuda.synchronize()
            passes.append([start.elapsed_time(end) for start, end in itertools.pairwise(times.ends)])
            del loss
    forward, backward = (statistics.median(column) for column in zip(*passes[2:], strict=True))
    return {
        "forward, ms": forward,
        "backward, ms": backward,
        "both": forward + backward,
        "peak memory, MB": peak.megabytes,
    }


def loss_part(args):
    losses = {**CONTENDERS, "dense CLIP, bf16 logits": in_bf16}
    return {
        f"{n} pairs, {name}": partial(loss_cost, function, n)
        for n in args.loss_batch_sizes
        for name, function in losses.items()
    }


# transfer


def as_float(pixels):
    return pixels.to("cuda")


def as_pinned(pixels):
    return pixels.to("cuda", non_blocking=True)


def as_bytes(pixels):
    # One mean for all channels takes as long as one for each.
    return pixels.to("cuda", non_blocking=True).float().sub_(117).div_(68)


def copy_cost(copy, n, dtype, pinned, repeats=7):
    pixels = torch.ones(n, 3, 224, 224, dtype=dtype)
    if pinned:
        pixels = pixels.pin_memory()
    copy(pixels)
    seconds = statistics.median(timed("cuda", copy, pixels)[0] for _ in range(repeats))
    return {"ms": 1000 * seconds, "GB": pixels.nbytes / 1e9, "GB a second": pixels.nbytes / 1e9 / seconds}


def transfer_part(args):
    ways = {
        "float32, pageable, blocking": (as_float, torch.float32, False),
        "float32, pinned": (as_pinned, torch.float32, True),
        "bytes, pageable, blocking, normalised there": (as_bytes, torch.uint8, False),
        "bytes, pinned, normalised there": (as_bytes, torch.uint8, True),
    }
    return {
        f"{n} images, {title}": partial(copy_cost, copy, n, dtype, pinned)
        for n in args.transfer_batch_sizes
        for title, (copy, dtype, pinned) in ways.items()
    }


# largest_batch


def largest_fit(chunk_size, args):
    """The largest power of two, from 64 to the limit, that a step fits into memory with; 0 where none does."""
    config = base_config()
    step = TrainingStep(config, mixed_precision="bf16")
    largest, batch_size = 0, 64
    while batch_size <= args.largest_batch_limit and fits(step, config, batch_size, chunk_size):
        largest, batch_size = batch_size, 2 * batch_size
        free_memory()
    return {"pairs": largest, "is the limit asked for": 2 * largest > args.largest_batch_limit}


def fits(step, config, batch_size, chunk_size):
    try:
        step(base_inputs(config, batch_size), chunk_size)
        return True
    except torch.OutOfMemoryError:
        return False


def largest_batch_part(args):
    return {
        "whole batch": partial(largest_fit, None, args),
        f"chunks of {args.chunk_size}": partial(largest_fit, args.chunk_size, args),
    }


# The last of those by default changes how kernels are chosen, so that it comes after all that is timed.
PARTS = {
    "synchronisation": synchronisation_part,
    "precision": precision_part,
    "step": step_part,
    "loss": loss_part,
    "transfer": transfer_part,
    "resume": resume_part,
    "compile": compile_part,
    "largest_batch": largest_batch_part,
}
BY_DEFAULT = ["synchronisation", "precision", "step", "loss", "transfer", "resume"]


def free_memory():
    gc.collect()
    torch.cuda.empty_cache()


def cell(value):
    if isinstance(value, dict):
        return "; ".join(f"{name}: {cell(part)}" for name, part in value.items())
    if isinstance(value, list):
        return f"{len(value)} values"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run_part(rows):
    """Does the work of each row and prints it. What a row raises becomes its only cell."""
    results, heading = {}, None
    for title, work in rows.items():
        start = time.perf_counter()
        try:
            results[title] = work()
        except Exception as error:
            traceback.print_exc()
            results[title] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        if heading != list(results[title]):
            heading = list(results[title])
            print("\n|", " | ".join(["", *heading, "seconds in all"]), "|\n" + "|---" * (len(heading) + 2) + "|")
        cells = [title, *map(cell, results[title].values()), f"{time.perf_counter() - start:.1f}"]
        print("|", " | ".join(cells), "|", flush=True)
        free_memory()
    return results


def main():
    parser = script_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=BY_DEFAULT)
    parser.add_argument("--output", type=Path, help="JSON file for all figures, written after each part")
    parser.add_argument("--batch_size", type=int, default=1024, help="of the parts step and compile")
    parser.add_argument("--chunk_size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--num_workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--loss_batch_sizes", type=int, nargs="+", default=[1024, 4096, 8192, 32768])
    parser.add_argument("--transfer_batch_sizes", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--largest_batch_limit", type=int, default=131072)
    parser.add_argument(
        "--peak_tflops", type=float, help="dense bf16 peak of the device (known for H100, H200 and A100)"
    )
    args = parser.parse_args()
    # torch looks once, at the first product, whether full_determinism may be. An H100 has this size anyway.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA device, and torch finds none")
    name = torch.cuda.get_device_name()
    args.peak_tflops = args.peak_tflops or known_peak(name)
    if args.peak_tflops is None:
        parser.error(f"the peak of a {name} is not known here: give --peak_tflops, dense bf16, from its data sheet")

    results = {"device": described("cuda"), "transformers": transformers.__version__, "parts": {}}
    print(f"{results['device']}, transformers {transformers.__version__}, {args.peak_tflops:.0f} TFLOP/s at most")
    for part in args.parts:
        start = time.perf_counter()
        print(f"\n## {part}", flush=True)
        results["parts"][part] = run_part(PARTS[part](args))
        print(f"\n{part}: {time.perf_counter() - start:.0f} s", flush=True)
        if args.output is not None:
            args.output.write_text(json.dumps(results, indent=1) + "\n")
    if any("error" in row for rows in results["parts"].values() for row in rows.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
