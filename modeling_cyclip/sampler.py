"""Which sample comes when: a function of (seed, epoch), drawn by no generator's state."""

import random
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    r"""
    A shuffle of the dataset for every epoch, cut to whole batches, as keys `(epoch, index)` of [`CaptionedSamples`].

    The order depends on the seed and the epoch alone, so that a resumed run, or one with other workers or processes, sees
    the same. The tail that fills no batch is left out: padding it with repeats would make false negatives.

    Args:
        num_samples (`int`):
            Length of the dataset.
        batch_size (`int`):
            Pairs of a whole step, over all processes.
        seed (`int`):
            Seed of the order.

    Raises:
        `ValueError`: a dataset that does not fill one batch.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int):
        if num_samples < batch_size:
            raise ValueError(
                f"The training set has {num_samples} pairs, fewer than one batch of {batch_size} (the device batch times "
                "the number of processes). Lower `per_device_train_batch_size` or bring more data."
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(keyed_seed(self.seed, self.epoch))
        order = torch.randperm(self.num_samples, generator=generator)[: len(self)]
        return ((self.epoch, index) for index in order.tolist())

    def __len__(self) -> int:
        return self.num_samples - self.num_samples % self.batch_size


def keyed_seed(*key: int) -> int:
    """A 63-bit seed from integers, the same on every machine."""
    return random.Random(repr(key)).getrandbits(63)
