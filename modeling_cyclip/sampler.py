"""Which sample comes when: a function of (seed, epoch), drawn by no generator's state."""

import random
from collections.abc import Iterator

import numpy as np
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


def keyed_choice(seed: int, epoch: int, indices: np.ndarray, num_choices: np.ndarray) -> np.ndarray:
    r"""
    One of several, for each sample of an epoch: a hash of (seed, epoch, index) modulo the number of choices.

    Args:
        seed (`int`):
            Seed of the choice.
        epoch (`int`):
            The epoch.
        indices (`np.ndarray` of shape `(n,)`):
            The samples.
        num_choices (`np.ndarray` of shape `(n,)`):
            From how many each chooses.

    Returns:
        `np.ndarray` of shape `(n,)`: numbers from 0 to `num_choices - 1`.
    """
    # The finaliser of splitmix64 (Steele et al., 2014); products are meant to wrap.
    bits = np.asarray(indices).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(keyed_seed(seed, epoch))
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits = bits ^ (bits >> np.uint64(31))
    return (bits % np.asarray(num_choices).astype(np.uint64)).astype(np.int64)
