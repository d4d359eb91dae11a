"""Which sample comes when, and which of its captions: a function of (seed, epoch, sample), drawn by no generator's state."""

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    r"""
    A shuffle of the dataset for every epoch, cut to whole batches, as keys `(epoch, index)` of [`KeyedDataset`].

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


class KeyedDataset(Dataset):
    r"""
    A captioned dataset read by keys `(epoch, index)`: of several captions, one is drawn each epoch.

    Args:
        dataset (`datasets.Dataset` or `torch.utils.data.Dataset`):
            Rows with `image` and `caption` (a string, or a list of strings).
        seed (`int`):
            Seed of the draw.
    """

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        row = self.dataset[index]
        caption = row["caption"]
        if not isinstance(caption, str):
            caption = random.Random(keyed_seed(self.seed, epoch, index)).choice(caption)
        return {**row, "caption": caption}


def keyed_seed(*key: int) -> int:
    """A 63-bit seed from integers, the same on every machine."""
    return random.Random(repr(key)).getrandbits(63)
