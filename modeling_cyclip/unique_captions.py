"""Batches in which no caption comes twice: the second image of a caption would be a false negative."""

from collections.abc import Iterable, Iterator

import numpy as np
from transformers.utils import logging

from .sampler import EpochSampler, keyed_choice, keyed_seed


logger = logging.get_logger(__name__)


class UniqueCaptionSampler(EpochSampler):
    r"""
    An [`~modeling_cyclip.sampler.EpochSampler`] whose batches hold every caption once at most, of the captions that
    [`~modeling_cyclip.samples.CaptionedSamples`] draws in the epoch.

    The shuffled samples, those of one caption next to each other, are dealt to the batches in turn like cards, so that
    equal captions come to different batches. A caption with more images than there are batches sits the rest out, others
    each epoch. Every epoch has the same number of batches, the largest that never comes short.

    Args:
        captions (`Iterable[str | list[str]]`):
            The caption, or the captions, of every sample.
        batch_size (`int`):
            Pairs of a whole step, over all processes.
        seed (`int`):
            Seed of the order and of the draw of captions.

    Raises:
        `ValueError`: a dataset that does not fill one batch.
    """

    def __init__(self, captions: Iterable[str | list[str]], batch_size: int, seed: int):
        numbers: dict[str, int] = {}
        flat, counts = [], []
        for caption in captions:
            texts = [caption] if isinstance(caption, str) else caption
            counts.append(len(texts))
            flat.extend(numbers.setdefault(text, len(numbers)) for text in texts)
        super().__init__(len(counts), batch_size, seed)
        self.flat, self.counts = np.array(flat), np.array(counts)
        self.offsets = np.cumsum(self.counts) - self.counts
        self.num_batches = self._largest_number_of_batches()

    def _largest_number_of_batches(self) -> int:
        # A caption is drawn at most by every sample that has it (once, however often it stands in the sample's list).
        owners = np.repeat(np.arange(self.num_samples), self.counts)
        pairs = np.unique(np.stack([owners, self.flat]), axis=1)
        most_drawn = np.bincount(pairs[1])
        low, high = 0, self.num_samples // self.batch_size
        while low < high:  # fewer batches leave out more, but need fewer still
            middle = (low + high + 1) // 2
            left_out = np.maximum(most_drawn - middle, 0).sum()
            if self.num_samples - left_out >= middle * self.batch_size:
                low = middle
            else:
                high = middle - 1
        return low

    def drawn_captions(self) -> np.ndarray:
        """The number of the caption that each sample draws in this epoch, `(num_samples,)`."""
        indices = np.arange(self.num_samples)
        return self.flat[self.offsets + keyed_choice(self.seed, self.epoch, indices, self.counts)]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = np.random.Generator(np.random.PCG64(keyed_seed(self.seed, self.epoch)))
        shuffled = generator.permutation(self.num_samples)
        # Samples of one caption next to each other, in the order in which the captions first come up.
        _, first, group = np.unique(self.drawn_captions()[shuffled], return_index=True, return_inverse=True)
        order = np.argsort(first[group], kind="stable")
        place = np.arange(self.num_samples) - np.maximum.accumulate(
            np.where(np.diff(first[group][order], prepend=-1) != 0, np.arange(self.num_samples), 0)
        )
        kept = shuffled[order[place < self.num_batches]]
        # Dealing the cards: the k-th goes to batch k modulo the number of batches.
        dealt = kept[: len(self)].reshape(self.batch_size, self.num_batches).T
        batches = generator.permuted(generator.permutation(dealt), axis=1)
        return ((self.epoch, index) for index in batches.ravel().tolist())

    def __len__(self) -> int:
        return self.num_batches * self.batch_size
