"""Pairs to train on and arguments to train by, for benchmarks that need no data."""

import random
from functools import cache

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from transformers import PrinterCallback

from modeling_cyclip import CyCLIPTrainingArguments
from modeling_cyclip.data.shapes import COLOURS, PHRASINGS, SHAPES, scenes


NUM_SHAPES = 2560


@cache
def shape_pairs():
    generator = random.Random(0)
    kinds = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    return [
        {"image": image, "caption": f"{generator.choice(PHRASINGS).format(**scene)}, number {number}"}
        for number, (scene, image) in enumerate(scenes(kinds, NUM_SHAPES, seed=0))
    ]


class RandomPictures(Dataset):
    """As many pairs as are asked for: pictures of random bytes, of the model's size, and captions that fill the context."""

    def __init__(self, size, num_pairs):
        self.num_pairs = num_pairs
        bytes_of = np.random.default_rng(0).integers
        self.images = [Image.fromarray(bytes_of(256, size=(size, size, 3), dtype=np.uint8)) for _ in range(64)]
        draw = random.Random(0)
        words = [*COLOURS, *SHAPES]
        self.captions = [" ".join(draw.choices(words, k=100)) for _ in range(1000)]

    def __len__(self):
        return self.num_pairs

    def __getitem__(self, index):
        return {"image": self.images[index % len(self.images)], "caption": self.captions[index % len(self.captions)]}


def quiet(trainer):
    trainer.remove_callback(PrinterCallback)
    return trainer


def training_arguments(output_dir, steps, batch_size, **options):
    options = {"dataloader_num_workers": 0, **options}
    return CyCLIPTrainingArguments(
        output_dir,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        # Every step has its cyclic terms.
        cyclic_start_ratio=0,
        cyclic_warmup_ratio=0,
        report_to="none",
        disable_tqdm=True,
        **options,
    )
