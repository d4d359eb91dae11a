"""A whole training step on the CPU: the Trainer beside a loop written by hand with transformers' CLIPModel and the same loader.

    OMP_NUM_THREADS=1 python benchmarks/step_cost.py

`nano` on drawn shapes at 128 pairs, and a ViT-B/32 on random pictures at 8. Short trainings of both kinds take turns. A step
lasts from the end of one to that of the next, loading included. The hand-written loop computes CLIP's loss, the Trainer
CyCLIP's. A second table says where the Trainer's time goes.
"""

import collections
import contextlib
import itertools
import statistics
import tempfile
import time
from functools import partial

import torch
from machine import described, script_parser
from trainings import RandomPictures, quiet, shape_pairs, training_arguments
from transformers import CLIPModel, TrainerCallback

from modeling_cyclip import CyCLIPTrainer, modeling_cyclip
from modeling_cyclip.build_model import ModelArguments, build_model_and_processor


CASES = {"nano": (128, 32), "base-32": (8, 224)}


class Ends(TrainerCallback):
    def __init__(self):
        self.ends = []

    def on_step_end(self, *_, **__):
        self.ends.append(time.perf_counter())


def make_trainer(size, batch_size, image_size, steps, folder, ends, **options):
    pairs = shape_pairs() if size == "nano" else RandomPictures(image_size, steps * batch_size)
    captions = [pair["caption"] for pair in pairs] if size == "nano" else pairs.captions
    torch.manual_seed(0)
    arguments = ModelArguments(model_size=size, image_size=image_size, vocab_size=600)
    model, processor = build_model_and_processor(arguments, captions)
    options = {"use_cpu": True, "save_strategy": "no", "logging_steps": 10, "num_train_epochs": 100, **options}
    arguments = training_arguments(folder, steps, batch_size, **options)
    return quiet(CyCLIPTrainer(model, arguments, pairs, processing_class=processor, callbacks=[ends]))


def by_hand(trainer, steps):
    """The seconds of each step."""
    model = CLIPModel(trainer.model.config)
    model.load_state_dict(trainer.model.state_dict())
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.1)
    ends, collator = [], trainer.data_collator
    while len(ends) < steps:
        for batch in trainer.get_train_dataloader():
            loss = model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                pixel_values=collator.normalized(batch["pixel_values"]),
                return_loss=True,
            ).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            ends.append(time.perf_counter())
            if len(ends) == steps:
                break
    return ends


@contextlib.contextmanager
def parts_timed(trainer, seconds):
    """Adds up the seconds within the parts of a step."""

    def timed_part(name, function, *arguments, **options):
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds[name] += time.perf_counter() - start

    model = trainer.model
    places = [
        (trainer, "get_batch_samples", "loading"),
        (model, "get_image_features", "image tower, forward"),
        (model, "get_text_features", "text tower, forward"),
        (modeling_cyclip, "cyclip_loss", "loss with its gradients"),
        (trainer.accelerator, "backward", "backward"),
        (trainer, "_remember", "kept for the log"),
        (trainer, "log", "logs"),
    ]
    kept = [getattr(place, name) for place, name, _ in places]
    for (place, name, part), function in zip(places, kept, strict=True):
        setattr(place, name, partial(timed_part, part, function))
    step = torch.optim.AdamW.step
    torch.optim.AdamW.step = lambda *arguments, **options: timed_part("optimizer", step, *arguments, **options)
    try:
        yield
    finally:
        torch.optim.AdamW.step = step
        for (place, name, _), function in zip(places, kept, strict=True):
            setattr(place, name, function)


def between(ends):
    return [1e3 * (end - start) for start, end in itertools.pairwise(ends[1:])]


def main():
    parser = script_parser(__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=12, help="of a training; the first two are not counted")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    print(
        f"{described('cpu')}\n\n| | by hand, ms | Trainer, ms | ratio of medians by round [quartiles] |\n|---|---|---|---|"
    )
    tables = []
    for size in args.cases:
        batch_size, image_size = CASES[size]
        hand, own, ratios, parts = [], [], [], collections.Counter()
        for _ in range(args.rounds):
            with tempfile.TemporaryDirectory() as folder:
                ends = Ends()
                trainer = make_trainer(size, batch_size, image_size, args.steps, folder, ends)
                hand_now = between(by_hand(trainer, args.steps))
                trainer.train()
                own_now = between(ends.ends)
                ends.ends.clear()
                trainer.state.global_step = 0
                with parts_timed(trainer, parts):
                    trainer.train()
                parts["all"] += ends.ends[-1] - ends.ends[0]
            hand += hand_now
            own += own_now
            ratios.append(statistics.median(own_now) / statistics.median(hand_now))
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        print(
            f"| {size}, {batch_size} pairs | {statistics.median(hand):.1f} | {statistics.median(own):.1f} | "
            f"{middle:.3f} [{low:.3f}, {high:.3f}] |",
            flush=True,
        )
        total = sum(seconds for name, seconds in parts.items() if name != "all")
        tables.append((size, {name: seconds / total for name, seconds in parts.items() if name != "all"}))
    print("\n| part | " + " | ".join(size for size, _ in tables) + " |\n|---" + "|---" * len(tables) + "|")
    for name in tables[0][1]:
        print(f"| {name} |", " | ".join(f"{100 * shares[name]:.1f} %" for _, shares in tables), "|")


if __name__ == "__main__":
    main()
