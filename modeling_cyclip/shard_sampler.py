"""The order of samples that lie in shards: shuffled, but from few shards at a time."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from .sampler import EpochSampler, keyed_seed
from .unique_captions import UniqueCaptionSampler


# A batch mixes samples of so many shards. What is read meanwhile stays in the page cache, or in that of a network disk.
SHARD_WINDOW = 16


class ShardSampler(EpochSampler):
    r"""
    An [`~modeling_cyclip.sampler.EpochSampler`] that reads the dataset in windows of a few shards.

    Each epoch shuffles the shards and divides them into windows, and shuffles the samples of a window. A set of no more
    shards than a window is shuffled as a whole.

    Args:
        shards (`Sequence[int]`):
            The shard of every sample.
        batch_size (`int`):
            Pairs of a whole step, over all processes.
        seed (`int`):
            Seed of the order.
        window (`int`, *optional*, defaults to 16):
            Shards of a window.
    """

    def __init__(self, shards: Sequence[int], batch_size: int, seed: int, window: int = SHARD_WINDOW):
        super().__init__(len(shards), batch_size, seed)
        self.shards, self.window = np.asarray(shards), window

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = _windowed(self.shards, self.window, _generator(self))
        return ((self.epoch, index) for index in order[: len(self)].tolist())


class UniqueCaptionShardSampler(UniqueCaptionSampler):
    r"""
    A [`ShardSampler`] whose batches hold every caption once at most.

    Of the samples of one caption, those that would meet in a batch move to the next ones; where captions repeat so much
    that a batch would overflow, the epoch is that of [`~modeling_cyclip.unique_captions.UniqueCaptionSampler`], without
    windows. An epoch has as many batches as there.

    Args:
        captions (`Iterable[str | list[str]]`):
            The caption, or the captions, of every sample.
        shards (`Sequence[int]`):
            The shard of every sample.
        batch_size (`int`):
            Pairs of a whole step, over all processes.
        seed (`int`):
            Seed of the order and of the draw of captions.
        window (`int`, *optional*, defaults to 16):
            Shards of a window.
    """

    def __init__(
        self,
        captions: Iterable[str | list[str]],
        shards: Sequence[int],
        batch_size: int,
        seed: int,
        window: int = SHARD_WINDOW,
    ):
        super().__init__(captions, batch_size, seed)
        self.shards, self.window = np.asarray(shards), window

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = _generator(self)
        order = _windowed(self.shards, self.window, generator)
        samples, batch = _apart(order, self.drawn_captions()[order], self.num_batches)
        is_single = batch < 0
        free = self.batch_size - np.bincount(batch[~is_single], minlength=self.num_batches)
        if free.min(initial=0) < 0:
            return super().__iter__()
        # Captions that come once fill the batches, in order; the last of them find no place.
        places = np.repeat(np.arange(self.num_batches), free)
        singles = samples[is_single][: len(places)]
        samples, batch = np.append(samples[~is_single], singles), np.append(batch[~is_single], places)
        # A process takes a part of each batch, so that its samples are shuffled as well.
        mixed = generator.permutation(len(samples))
        order = samples[mixed[np.argsort(batch[mixed], kind="stable")]]
        return ((self.epoch, index) for index in order.tolist())


def _generator(sampler: EpochSampler) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(keyed_seed(sampler.seed, sampler.epoch)))


def _windowed(shards: np.ndarray, window: int, generator: np.random.Generator) -> np.ndarray:
    """The samples, shuffled within windows of shuffled shards."""
    _, numbers = np.unique(shards, return_inverse=True)
    window_of_shard = generator.permutation(numbers.max() + 1) // window
    shuffled = generator.permutation(len(shards))
    return shuffled[np.argsort(window_of_shard[numbers[shuffled]], kind="stable")]


def _apart(order: np.ndarray, captions: np.ndarray, num_batches: int) -> tuple[np.ndarray, np.ndarray]:
    r"""
    Batches for the samples whose caption comes more than once: a different one each, near their place in the order.

    Args:
        order (`np.ndarray` of shape `(n,)`):
            The samples.
        captions (`np.ndarray` of shape `(n,)`):
            Their captions.
        num_batches (`int`):
            Batches; of a caption with more samples, the rest is left out.

    Returns:
        `tuple(np.ndarray, np.ndarray)`: the samples that are left, in order, and the batch of each, -1 for a sample whose
        caption comes once.
    """
    wanted = np.arange(len(order)) * num_batches // len(order)
    by_caption = np.argsort(captions, kind="stable")
    _, start, group, counts = np.unique(
        captions[by_caption], return_index=True, return_inverse=True, return_counts=True
    )
    place, counts = np.arange(len(order)) - start[group], np.minimum(counts, num_batches)[group]
    # The k-th of a caption goes to the first batch from the wanted one on that comes after the (k-1)-th: with k taken off,
    # a running maximum, made within each caption by steps between captions that no batch number reaches.
    step = group * num_batches
    batch = np.maximum.accumulate(wanted[by_caption] - place + step) - step + place
    # And early enough to leave a batch to each of those after it.
    batch = np.minimum(batch, num_batches - counts + place)
    batch[counts == 1] = -1
    kept = place < num_batches
    batch_in_order = np.empty_like(batch)
    batch_in_order[by_caption] = np.where(kept, batch, -2)
    is_left = batch_in_order > -2
    return order[is_left], batch_in_order[is_left]
