"""Trains the models of comparisons side by side on one GPU, which any of them alone would leave idle.

    python benchmarks/train_at_once.py study_emoji_256 study_emoji_64
    cyclip compare --config study_emoji_256
    cyclip compare --config study_emoji_64

`cyclip compare` finds the trainings done, measures them and writes the report.

A step of a small model is a thousand kernels of a few microseconds, which Python launches more slowly than a GPU runs them. Here
a step is recorded once, as a CUDA graph, and then replayed; the steps of several trainings run side by side, each in a stream
of its own. All pictures and captions lie in the GPU's memory. A step reads from tables which of them make its batch, what the
learning rate is, and how much the cyclic terms weigh.

Initial weights, order, captions, loss, optimizer and schedule are those of `cyclip train`, and so are the losses and the weights (tests, on a
CPU). What a small CLIP does without is refused or left out: several processes, half precision, adapters, other models, evaluation,
health warnings and checkpoints on the way. All trainings of one call must fit into the GPU's memory together.
"""

import argparse
import gc
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.trainer_utils import set_seed

from modeling_cyclip import CyCLIPModel, CyCLIPTrainer, cyclic_regularisers, cyclip_loss
from modeling_cyclip.arguments import parse_with_config
from modeling_cyclip.balance import bounded_sum
from modeling_cyclip.build_model import build_model_and_processor
from modeling_cyclip.commands.train import save_model
from modeling_cyclip.comparison.runs import TRAIN_ARGUMENTS, ComparisonArguments, Run, plan_runs
from modeling_cyclip.data.augment import SecondView
from modeling_cyclip.data.captions import iterate_captions, load_captioned_datasets
from modeling_cyclip.data.data_collator import CyCLIPDataCollator
from modeling_cyclip.data.sampler import captions_of_row, keyed_choice
from modeling_cyclip.data.samples import CaptionedSamples
from modeling_cyclip.data.tokenizer import context_length, tokenize
from modeling_cyclip.optimizer import MAX_LOGIT_SCALE
from modeling_cyclip.training_log import WeightedMean


# Steps before the one that is recorded: they make what all later ones find made, such as the optimizer's state.
FIRST_STEPS = 3
# Trainings whose graphs one thread launches.
TRAININGS_A_THREAD = 3


# Arguments of `cyclip train` that only have these values here.
FOLLOWED = {
    "bf16": False, "fp16": False, "gradient_cache_chunk_size": None, "max_grad_norm": 0.0, "optim": "adamw_torch_fused",
    "vision_learning_rate": None, "text_learning_rate": None, "eval_strategy": "no", "full_determinism": False,
    "cyclic_reference_batch_size": None, "config_name": None, "vision_model": None, "lora_rank": None, "save_dtype": "float32",
    "random_resized_crop": None, "patch_dropout": 0.0, "validation_file": None, "validation_shards": None, "eval_zero_shot": None,
}  # fmt: skip


def check(args: ComparisonArguments, runs: list[Run]) -> None:
    """Raises a `ValueError` for what `cyclip train` would do and nothing here does, before anything is read."""
    if args.launcher is not None:
        raise ValueError("a launcher has no effect here: leave it out, or train by cyclip compare alone.")
    for run in runs:
        told = {
            name: value
            for part in parse_with_config(TRAIN_ARGUMENTS, list(run.argv), "")
            for name, value in vars(part).items()
        }
        for name, value in FOLLOWED.items():
            if told[name] != value:
                raise ValueError(
                    f"{run.name} has {name} {told[name]}, which is not followed here: set {value}, or train by cyclip compare alone."
                )


class Pairs:
    """What trainings share that differ in their seed or their loss alone: pairs, tokenizer, pixels and tokens."""

    def __init__(self, model_args, data_args, device: torch.device):
        self.dataset, _ = load_captioned_datasets(data_args)
        model, processor = build_model_and_processor(model_args, iterate_captions(self.dataset))
        self.folder = TemporaryDirectory()
        processor.tokenizer.save_pretrained(self.folder.name)
        self.collator = CyCLIPDataCollator(processor, context_length(processor.tokenizer, model.config))
        samples = CaptionedSamples(
            self.dataset,
            seed=0,
            min_image_size=self.collator.min_image_size,
            process_image=self.collator.process_image,
        )
        pixels = torch.stack([_readable(samples[row])["image"] for row in range(len(self.dataset))])
        self.pixels = self.collator.normalized(pixels.to(device))
        captions = [captions_of_row(caption, row) for row, caption in enumerate(self.dataset["caption"])]
        self.tokens = self.tokenize([text for texts in captions for text in texts]).to(device)
        self.counts = np.array([len(texts) for texts in captions])

    def tokenize(self, captions: list[str]) -> Tensor:
        """Token ids, padded to the whole context: what stands behind the end of a text changes nothing."""
        tokenizer, max_length = self.collator.processor.tokenizer, self.collator.max_length
        return tokenize(tokenizer, captions, max_length, padding="max_length")["input_ids"]


class Training:
    """One training of a comparison: the tables of all its steps, and the step that reads them."""

    def __init__(self, run: Run, all_pairs: dict[str, Pairs]):
        self.run = run
        model_args, data_args, args = parse_with_config(TRAIN_ARGUMENTS, list(run.argv), "")
        shared = replace(
            model_args, inmodal_cyclic_weight=None, crossmodal_cyclic_weight=None, cyclic_max_gradient_share=None
        )
        key = repr((shared, data_args))
        if key not in all_pairs:
            all_pairs[key] = Pairs(shared, data_args, args.device)
        self.pairs, self.device = all_pairs[key], args.device
        set_seed(args.seed)
        model, processor = build_model_and_processor(
            replace(model_args, tokenizer_name=self.pairs.folder.name), iter(())
        )
        if not isinstance(model, CyCLIPModel) or model.config.cyclic_reference_batch_size is not None:
            raise ValueError(
                f"{run.name} trains a {type(model).__name__}, perhaps with a reference batch: only a CyCLIPModel without is trained here."
            )
        self.trainer = CyCLIPTrainer(
            model=model,
            args=args,
            train_dataset=self.pairs.dataset,
            processing_class=processor,
            augment=SecondView(data_args.synonyms) if data_args.inmodal_contrastive else None,
            run_arguments={"model": model_args, "data": data_args},
        )
        self.trainer.callback_handler.callbacks = []
        self.trainer._initial_global_step, self.trainer._train_parts = 0, WeightedMean()
        self.model = model.to(self.device).train()
        self.is_cyclic = model.config.inmodal_cyclic_weight + model.config.crossmodal_cyclic_weight > 0
        self.is_bounded = self.is_cyclic and model.config.cyclic_max_gradient_share is not None
        self._make_tables()
        self.optimizer = self.trainer.optimizer
        self.rate = torch.zeros((), device=self.device)
        for group in self.optimizer.param_groups:
            group.update(lr=self.rate, capturable=self.device.type == "cuda")
        self.step_number = torch.zeros(1, dtype=torch.long, device=self.device)
        names = ("loss", "contrastive_loss", "cyclic_gradient_factor")
        self.logged = {name: torch.zeros(self.num_steps, device=self.device) for name in names}
        self.done, self.graph = 0, None
        self.stream = torch.cuda.Stream() if self.device.type == "cuda" else None

    def _make_tables(self) -> None:
        """What each step takes: rows and captions, second views, the factor of the cyclic weights, the learning rate."""
        args, state, sampler = self.trainer.args, self.trainer.state, self.trainer._get_train_sampler()
        self.steps_in_epoch = len(sampler) // sampler.batch_size
        planned = math.ceil(self.steps_in_epoch * args.num_train_epochs)
        self.num_steps = args.max_steps if args.max_steps > 0 else planned
        if self.num_steps <= FIRST_STEPS:
            raise ValueError(
                f"{self.run.name} takes {self.num_steps} steps, and more than {FIRST_STEPS} are needed here."
            )
        epochs = range(math.ceil(self.num_steps / self.steps_in_epoch))
        rows = [sampler.order(epoch)[: len(sampler)] for epoch in epochs]
        counts = self.pairs.counts
        first = np.cumsum(counts) - counts
        captions = [
            first[of] + keyed_choice(self.trainer._data_seed(), epoch, of, counts[of])
            for epoch, of in zip(epochs, rows, strict=True)
        ]
        num_pairs = self.num_steps * sampler.batch_size
        self.rows, self.captions = (
            torch.from_numpy(np.concatenate(table)[:num_pairs]).view(self.num_steps, -1).to(self.device)
            for table in (rows, captions)
        )
        keys = [(epoch, int(row)) for epoch, of in zip(epochs, rows, strict=True) for row in of][:num_pairs]
        self.views = None if self.trainer.augment is None else self._make_views(keys)

        state.max_steps, state.num_train_epochs = self.num_steps, len(epochs)
        state.compute_steps(args, self.num_steps)
        state.train_batch_size = sampler.batch_size
        factors = []
        for state.global_step in range(self.num_steps):
            factors.append(self.trainer.cyclic_weight_factor())
        self.factors = torch.tensor(factors, device=self.device)
        self.trainer.create_optimizer_and_scheduler(self.num_steps)
        (peak, *_), (multiplier, *_) = self.trainer.lr_scheduler.base_lrs, self.trainer.lr_scheduler.lr_lambdas
        self.rates = peak * torch.tensor([multiplier(step) for step in range(self.num_steps)], device=self.device)

    def _make_views(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Pixels and tokens of the second views of all steps, one after another."""
        collator, args = self.pairs.collator, self.trainer.args
        samples = CaptionedSamples(
            self.pairs.dataset,
            self.trainer._data_seed(),
            collator.min_image_size,
            augment=self.trainer.augment,
            process_image=collator.process_image,
        )
        loader = DataLoader(samples, 256, sampler=keys, num_workers=args.dataloader_num_workers, collate_fn=_views)
        pixels, captions = zip(*loader, strict=True)
        tokens = self.pairs.tokenize([text for texts in captions for text in texts])
        return collator.normalized(torch.cat(pixels).to(self.device)), tokens.to(self.device)

    def step(self) -> None:
        """One step of the training. All that changes from step to step lies on the device."""
        number = self.step_number
        rows, captions = (table.index_select(0, number)[0] for table in (self.rows, self.captions))
        inputs = {"pixel_values": self.pairs.pixels[rows], "input_ids": self.pairs.tokens[captions]}
        if self.views is not None:
            of_step = number * len(rows) + torch.arange(len(rows), device=self.device)
            pixels, tokens = (table[of_step] for table in self.views)
            inputs |= {"augmented_pixel_values": pixels, "augmented_input_ids": tokens}
        self.rate.copy_(self.rates.index_select(0, number)[0])
        outputs = self.model(**inputs)
        values = self._loss(outputs, self.factors.index_select(0, number)[0])
        values[0].backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
            for table, value in zip(self.logged.values(), values, strict=True):
                table.index_copy_(0, number, value.detach().reshape(1))
            self.step_number += 1
        self.last = outputs.image_embeds.detach(), outputs.text_embeds.detach(), inputs["input_ids"]

    def _loss(self, outputs, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        The loss of `CyCLIPModel.compute_loss` for a factor of the cyclic weights that lies on the device, its contrastive
        part, and the factor by which the bound has lowered the cyclic gradient.
        """
        config = self.model.config
        names = () if self.views is None else ("augmented_image_embeds", "augmented_text_embeds")

        def contrastive(image_embeds, text_embeds, logit_scale, *views):
            clip = {"inmodal_cyclic_weight": 0.0, "crossmodal_cyclic_weight": 0.0, "return_all_parts": False}
            views = dict(zip(names, views, strict=True))
            parts = cyclip_loss(image_embeds, text_embeds, logit_scale, **clip, **views)
            return parts.loss, parts.contrastive_loss

        def cyclic(image_embeds, text_embeds):
            inmodal, crossmodal = cyclic_regularisers(image_embeds, text_embeds)
            return factor * (config.inmodal_cyclic_weight * inmodal + config.crossmodal_cyclic_weight * crossmodal)

        inputs = outputs.image_embeds, outputs.text_embeds, outputs.logit_scale, *(outputs[name] for name in names)
        one = torch.ones((), device=self.device)
        if not self.is_bounded:
            loss, part = contrastive(*inputs)
            return (loss + cyclic(*inputs[:2]) if self.is_cyclic else loss), part, one
        leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)
        loss, part = contrastive(*leaves)
        share = factor * config.cyclic_max_gradient_share
        loss, lowered = bounded_sum(loss, cyclic(*leaves[:2]), leaves, inputs, share, None)
        return loss, part, lowered

    def advance(self) -> None:
        """Takes a step: on a GPU from the recorded one, which is recorded when the first ones have been taken."""
        if self.graph is not None:
            self.graph.replay()
        else:
            self.optimizer.zero_grad(set_to_none=True)
            self.step()
        self.done += 1

    def record(self) -> None:
        with torch.cuda.stream(self.stream):
            for _ in range(FIRST_STEPS):
                self.advance()
        self.stream.synchronize()
        self.optimizer.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.step()

    def steps_to_the_next_log(self) -> int:
        every = int(self.trainer.state.logging_steps)
        return min(every - self.done % every, self.num_steps - self.done)

    def log(self) -> None:
        """What the Trainer logs of the steps since the last log, but without the norm of the gradient."""
        trainer, every = self.trainer, int(self.trainer.state.logging_steps)
        window = slice(self.done - (self.done % every or every), self.done)
        trainer.state.global_step, trainer.state.epoch = self.done, self.done / self.steps_in_epoch
        parts = {"contrastive_loss": self.logged["contrastive_loss"][window].mean()}
        is_cyclic = self.factors[window] > 0
        if self.is_bounded and is_cyclic.any():
            parts["cyclic_gradient_factor"] = self.logged["cyclic_gradient_factor"][window][is_cyclic].mean()
        trainer._train_parts.add(parts, weight=1)
        *trainer._last_embeds, input_ids = self.last
        trainer._last_captions = input_ids, None
        if not self.logged["loss"][window].isfinite().all():
            raise ValueError(f"{self.run.name} has diverged before step {self.done}: lower learning_rate.")
        logs = {"loss": self.logged["loss"][window].mean().item(), "learning_rate": self.rates[self.done - 1].item()}
        trainer.log(logs, start_time=self.start)

    def save(self) -> None:
        save_model(self.trainer)
        # Nobody knows what one of several side by side took.
        self.run.record({"seconds": None, "cpu_seconds": None, "peak_memory": None, "gpu_memory": None})
        self.graph = None


def _readable(sample: dict) -> dict:
    """A sample, unless it is one that stands for another row whose image cannot be read."""
    for row, reason in sample["broken_images"].items():
        raise ValueError(f"the image of row {row} cannot be read: {reason}")
    return sample


def _views(samples: list[dict]) -> tuple[Tensor, list[str]]:
    images, captions = ([_readable(one)[f"augmented_{name}"] for one in samples] for name in ("image", "caption"))
    return torch.stack(images), captions


def train(trainings: list[Training]) -> None:
    """Takes all steps of all trainings, side by side from one log to the next, and saves each when it is done."""
    # Recording a graph collects garbage first, which takes long where so much is alive.
    gc.collect()
    gc.freeze()
    start = time.time()
    for training in trainings:
        training.start = start
        if training.stream is not None:
            torch.cuda.synchronize()
            training.record()
    left = list(trainings)
    while left:
        num_threads = math.ceil(len(left) / TRAININGS_A_THREAD)
        with ThreadPoolExecutor(num_threads) as threads:
            list(threads.map(to_the_next_log, [left[first::num_threads] for first in range(num_threads)]))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        for training in left:
            training.log()
            if training.done == training.num_steps:
                training.save()
                print(
                    f"{training.run.folder}: {training.num_steps:,} steps after {time.time() - start:.0f} s",
                    flush=True,
                )
        left = [training for training in left if training.done < training.num_steps]


def to_the_next_log(trainings: list[Training]) -> None:
    """Takes the steps of some trainings in turn."""
    steps = {training: training.steps_to_the_next_log() for training in trainings}
    for number in range(max(steps.values())):
        for training in trainings:
            if number < steps[training]:
                # No stream where there is none: this is then the default one.
                with torch.cuda.stream(training.stream):
                    training.advance()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="+", help="names or files of comparisons, as for cyclip compare --config")
    names = parser.parse_args().comparisons
    # Otherwise the streams share eight queues.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    start, runs, all_pairs = time.perf_counter(), [], {}
    try:
        for name in names:
            (args,) = parse_with_config((ComparisonArguments,), ["--config", name], "", "training/recipes/comparisons")
            planned = [run for run in plan_runs(args) if run.cost() is None]
            check(args, planned)
            runs += planned
        trainings = [Training(run, all_pairs) for run in runs]
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(trainings)} trainings are prepared after {time.perf_counter() - start:.0f} s", flush=True)
    start = time.perf_counter()
    try:
        train(trainings)
    except ValueError as error:
        sys.exit(f"error: {error}")
    seconds, steps = time.perf_counter() - start, sum(training.num_steps for training in trainings)
    print(f"{steps:,} steps in {seconds:.0f} s, {steps / seconds:.0f} a second", flush=True)


if __name__ == "__main__":
    main()
