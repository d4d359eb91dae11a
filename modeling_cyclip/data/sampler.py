"""Which sample comes when: a function of (seed, epoch) that depends on no generator's state."""

import random
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from tqdm.auto import tqdm
from transformers.utils import is_datasets_available, logging

from ..distributed import is_first_process


logger = logging.get_logger(__name__)

# A batch mixes samples of this many shards. Meanwhile they stay in the page cache, or in that of a network disk.
SHARD_WINDOW = 16
# Of samples with several captions each epoch draws others, in much the same proportions.
EPOCHS_LOOKED_AT = 8


class EpochSampler(Sampler[tuple[int, int]]):
    r"""
    A shuffle of the dataset for every epoch, cut to whole batches, as keys `(epoch, index)` of
    [`~modeling_cyclip.data.samples.CaptionedSamples`].

    The order depends on the seed and the epoch alone, so that a resumed run, or one with other workers or processes, sees
    the same. The tail that fills no batch is left out: padding it with repeats would make false negatives.

    Two arguments each change the order:

    - `shards`: the epoch shuffles the shards, divides them into windows of a few, and shuffles the samples of a window. A
      set of no more shards than a window is shuffled as a whole.
    - `captions`: no batch holds a caption twice, among those that `CaptionedSamples` draws in the epoch. Every epoch then
      has the same number of batches, the largest that the draws of the first epochs can fill. Where a caption has more
      images than there are batches, the surplus sits out, other images each epoch. A later epoch that draws less evenly than
      all of those fills its last places with it. Captions are compared as a tokenizer sees them, whatever the case and the
      white space.

    Args:
        num_samples (`int`):
            Length of the dataset.
        batch_size (`int`):
            Pairs of a whole step, over all processes.
        seed (`int`):
            Seed of the order, and of the draw of captions.
        captions (`Iterable[str | list[str]]`, *optional*):
            The caption, or the captions, of every sample.
        shards (`Sequence[int]`, *optional*):
            The shard of every sample.
        window (`int`, *optional*, defaults to 16):
            Shards of a window.

    Raises:
        `ValueError`: a dataset that does not fill one batch.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        captions: Iterable[str | list[str]] | None = None,
        shards: Sequence[int] | None = None,
        window: int = SHARD_WINDOW,
    ):
        if num_samples < batch_size:
            raise ValueError(
                f"The training set has {num_samples} pairs, fewer than one batch of {batch_size} (the device batch times "
                "the number of processes). Lower `per_device_train_batch_size` or bring more data."
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self._epoch_of_order, self._order = None, None
        self.shards, self.window = None if shards is None else np.asarray(shards), window
        self.captions = None if captions is None else _CaptionNumbers(captions)
        self.num_batches = num_samples // batch_size
        if self.captions is not None:
            self.num_batches = self.captions.largest_number_of_batches(batch_size, seed)

    def __getstate__(self) -> dict[str, Any]:
        # Where data workers are not forked, each gets a copy, and makes the order only if it meets a broken image.
        return {**vars(self), "_epoch_of_order": None, "_order": None}

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in self.order(self.epoch)[: len(self)].tolist())

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """All samples in the order of an epoch, `(num_samples,)`. Those behind the last whole batch sit out."""
        if epoch != self._epoch_of_order:
            self._epoch_of_order, self._order = epoch, self._make_order(epoch)
        return self._order

    def batch(self, epoch: int, index: int) -> np.ndarray:
        """The samples of the batch, over all processes, that a sample comes in, `(batch_size,)`."""
        first = self._place(epoch, index) // self.batch_size * self.batch_size
        return self.order(epoch)[first : first + self.batch_size]

    def substitutes(self, epoch: int, index: int) -> np.ndarray:
        """
        The samples that may replace one, the first choice first: those at the same position of the following batches, in a
        circle in which the samples that sit out are the last batch. None of them is in the sample's own batch, and no
        other sample of this batch has a substitute in common with it. So a batch repeats no sample, although each of its
        samples is replaced without regard to the others.

        With `captions`, samples whose caption is in the batch come last. The substitutes of two samples of a batch may
        still have one caption, where both are needed.
        """
        number, position = divmod(self._place(epoch, index), self.batch_size)
        column = np.roll(self.order(epoch)[position :: self.batch_size], -number)[1:]
        if self.captions is not None:
            drawn, of_batch = (
                self.captions.drawn(self.seed, epoch, samples) for samples in (column, self.batch(epoch, index))
            )
            column = column[np.argsort(np.isin(drawn, of_batch), kind="stable")]
        return column

    def _place(self, epoch: int, index: int) -> int:
        return int(np.flatnonzero(self.order(epoch) == index)[0])

    def _make_order(self, epoch: int) -> np.ndarray:
        key = keyed_seed(self.seed, epoch)
        if self.captions is None and self.shards is None:
            return torch.randperm(self.num_samples, generator=torch.Generator().manual_seed(key)).numpy()
        if self.captions is None:
            return _windowed(self.shards, self.window, _generator(key))
        drawn = self.captions.drawn(self.seed, epoch, np.arange(self.num_samples))
        order = None if self.shards is None else self._apart_in_windows(drawn, _generator(key))
        if order is None:
            order = self._dealt(drawn, _generator(key))
        sits_out = np.ones(self.num_samples, dtype=bool)
        sits_out[order] = False
        return np.append(order, np.flatnonzero(sits_out))

    def _dealt(self, drawn: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """
        Batches without repeats: the shuffled samples, with those of one caption next to each other, are dealt to the
        batches in turn like cards, so that equal captions come to different batches.
        """
        shuffled = generator.permutation(self.num_samples)
        # Samples of one caption next to each other, in the order in which the captions first come up.
        _, first, group = np.unique(drawn[shuffled], return_index=True, return_inverse=True)
        order = np.argsort(first[group], kind="stable")
        place = np.arange(self.num_samples) - np.maximum.accumulate(
            np.where(np.diff(first[group][order], prepend=-1) != 0, np.arange(self.num_samples), 0)
        )
        is_surplus = place >= self.num_batches
        # Dealing the cards: the k-th goes to batch k modulo the number of batches.
        cards = shuffled[np.append(order[~is_surplus], order[is_surplus])]
        dealt = cards[: len(self)].reshape(self.batch_size, self.num_batches).T
        return generator.permuted(generator.permutation(dealt), axis=1).ravel()

    def _apart_in_windows(self, drawn: np.ndarray, generator: np.random.Generator) -> np.ndarray | None:
        """
        Batches without repeats that keep to the windows: samples of one caption that would meet in a batch move to the
        next ones. `None` where captions repeat so much that a batch would overflow, or not be filled.
        """
        order = _windowed(self.shards, self.window, generator)
        samples, batch = _apart(order, drawn[order], self.num_batches)
        is_single = batch < 0
        free = self.batch_size - np.bincount(batch[~is_single], minlength=self.num_batches)
        if free.min(initial=0) < 0:
            return None
        # Captions that come once fill the batches, in order; the last of them find no place.
        places = np.repeat(np.arange(self.num_batches), free)
        singles = samples[is_single][: len(places)]
        if len(singles) < len(places):
            return None
        samples, batch = np.append(samples[~is_single], singles), np.append(batch[~is_single], places)
        # The samples of a batch are shuffled as well, since each process takes a part of it.
        mixed = generator.permutation(len(samples))
        return samples[mixed[np.argsort(batch[mixed], kind="stable")]]


class _CaptionNumbers:
    """The captions of all samples as numbers, equal for what a tokenizer does not tell apart."""

    def __init__(self, captions: Iterable[str | list[str]]):
        numbers: dict[str, int] = {}
        flat, counts = [], []
        for row, caption in enumerate(captions):
            texts = captions_of_row(caption, row)
            counts.append(len(texts))
            flat.extend(numbers.setdefault(" ".join(text.lower().split()), len(numbers)) for text in texts)
        # Small types: where data workers are not forked, each has a copy.
        self.flat, self.counts = np.array(flat, dtype=np.int32), np.array(counts, dtype=np.int32)
        self.offsets = np.cumsum(self.counts) - self.counts

    def drawn(self, seed: int, epoch: int, samples: np.ndarray) -> np.ndarray:
        """The caption that each of some samples draws in an epoch, `(n,)`."""
        return self.flat[self.offsets[samples] + keyed_choice(seed, epoch, samples, self.counts[samples])]

    def largest_number_of_batches(self, batch_size: int, seed: int) -> int:
        """How many batches without repeats each of the first epochs can fill."""
        samples = np.arange(len(self.counts))
        largest = len(self.counts) // batch_size
        for epoch in range(EPOCHS_LOOKED_AT if self.counts.max() > 1 else 1):
            times_drawn = np.bincount(self.drawn(seed, epoch, samples))
            low, high = 0, largest
            while low < high:  # fewer batches leave out more, but need fewer still
                middle = (low + high + 1) // 2
                left_out = np.maximum(times_drawn - middle, 0).sum()
                if len(self.counts) - left_out >= middle * batch_size:
                    low = middle
                else:
                    high = middle - 1
            largest = low
        return largest


def _generator(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(key))


def _windowed(shards: np.ndarray, window: int, generator: np.random.Generator) -> np.ndarray:
    """The samples, shuffled within windows of shuffled shards."""
    _, numbers = np.unique(shards, return_inverse=True)
    window_of_shard = generator.permutation(numbers.max() + 1) // window
    shuffled = generator.permutation(len(shards))
    return shuffled[np.argsort(window_of_shard[numbers[shuffled]], kind="stable")]


def _apart(order: np.ndarray, captions: np.ndarray, num_batches: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Gives each sample whose caption comes more than once another batch than its equals, near its place in the order, and
    leaves out those of a caption for which there are too few batches. Returns the samples that are left, in order, and the
    batch of each: -1 for a sample whose caption comes once.
    """
    wanted = np.arange(len(order)) * num_batches // len(order)
    by_caption = np.argsort(captions, kind="stable")
    _, start, group, counts = np.unique(
        captions[by_caption], return_index=True, return_inverse=True, return_counts=True
    )
    place, counts = np.arange(len(order)) - start[group], np.minimum(counts, num_batches)[group]
    # The k-th of a caption goes to the wanted batch, or to the first one behind that of the (k-1)-th. With k taken off this
    # is a running maximum. Steps that no batch number reaches keep it within each caption.
    step = group * num_batches
    batch = np.maximum.accumulate(wanted[by_caption] - place + step) - step + place
    # It also goes early enough to leave a batch to each of those after it.
    batch = np.minimum(batch, num_batches - counts + place)
    batch[counts == 1] = -1
    kept = place < num_batches
    batch_in_order = np.empty_like(batch)
    batch_in_order[by_caption] = np.where(kept, batch, -2)
    is_left = batch_in_order > -2
    return order[is_left], batch_in_order[is_left]


def make_train_sampler(dataset: Dataset, batch_size: int, seed: int, no_duplicate_captions: bool) -> EpochSampler:
    r"""
    The sampler that a training set calls for.

    Args:
        dataset (`datasets.Dataset` or `torch.utils.data.Dataset`):
            The training set. A table with a column `shard` is read from few shards at a time.
        batch_size (`int`):
            Pairs of a whole step, over all processes.
        seed (`int`):
            Seed of the order.
        no_duplicate_captions (`bool`):
            Whether to keep two samples with the same caption out of one batch, where the set is a table and has enough
            different captions.

    Returns:
        [`EpochSampler`]

    Raises:
        `ValueError`: a dataset that does not fill one batch.
    """
    shards = None
    if is_table(dataset) and "shard" in dataset.column_names:
        shards = dataset.with_format("numpy", columns=["shard"])[:]["shard"]
    sampler = EpochSampler(len(dataset), batch_size, seed, shards=shards)
    if not no_duplicate_captions or not is_table(dataset):
        return sampler
    if "caption" not in dataset.column_names:
        logger.warning(
            "`no_duplicate_captions` has no effect here: the captions come of a transform. Make a column of them, with `map`."
        )
        return sampler
    # By batches: iterating over the column itself would take its rows one by one.
    batches = dataset.select_columns("caption").iter(batch_size=1000)
    captions = (caption for batch in batches for caption in batch["caption"])
    # Millions of captions take a minute.
    captions = tqdm(
        captions, "Reading captions, to keep equal ones apart", len(dataset), delay=2, disable=not is_first_process()
    )
    unique = EpochSampler(len(dataset), batch_size, seed, captions=captions, shards=shards)
    if len(unique) < len(sampler) // 2:
        logger.warning(
            f"`no_duplicate_captions` has no effect here: the data has too few different captions for batches of "
            f"{batch_size} without repeats."
        )
        return sampler
    if len(unique) < len(sampler):
        logger.info(f"{len(sampler) - len(unique)} pairs sit out each epoch so that no batch repeats a caption.")
    return unique


def captions_of_row(caption: Any, row: int) -> Sequence[str]:
    """The captions of a row, which has one or several. Raises a `ValueError` where it has none."""
    if isinstance(caption, str):
        return [caption]
    if not isinstance(caption, Sized) or len(caption) == 0:
        raise ValueError(
            f"Row {row} has the caption {caption!r}, which is no text and no list of texts. Leave out rows without one."
        )
    return caption


def is_table(dataset: Dataset) -> bool:
    """Whether it is a `datasets.Dataset`, of which a column can be read without reading the others."""
    if not is_datasets_available():
        return False
    import datasets

    return isinstance(dataset, datasets.Dataset)


def keyed_seed(*key: int) -> int:
    """A 63-bit seed from integers, the same on every machine."""
    return random.Random(repr(key)).getrandbits(63)


def keyed_choice(seed: int, epoch: int, indices: np.ndarray, num_choices: np.ndarray) -> np.ndarray:
    """
    Chooses for each sample of an epoch a number from 0 to its `num_choices - 1`: a hash of (seed, epoch, index) modulo
    `num_choices`. Arrays are of shape `(n,)`.
    """
    # The finaliser of splitmix64 (Steele et al., 2014); products are meant to wrap.
    bits = np.asarray(indices).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(keyed_seed(seed, epoch))
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits = bits ^ (bits >> np.uint64(31))
    return (bits % np.asarray(num_choices).astype(np.uint64)).astype(np.int64)
