"""A figure that is a mean over test items, and its bootstrap interval."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


# Resamples drawn at once times distinct scores: bounds the memory to about 64 MB.
MAX_COUNTS = 2**23


@dataclass(frozen=True)
class Measure:
    r"""
    An accuracy, a recall or another figure that is a mean over test items, kept with the score of every item.

    Args:
        scores (`torch.Tensor` of shape `(num_items,)`):
            Each item's score, 0 or 1 for an accuracy.
        classes (`torch.Tensor` of shape `(num_items,)`, *optional*):
            Class of each item. With it, the figure is the mean of the class means, over the classes that have items;
            without it, the mean over items.
        chance (`float`, *optional*):
            What guessing would reach, where that is known.
    """

    scores: Tensor
    classes: Tensor | None = None
    chance: float | None = None

    def __post_init__(self):
        if len(self.scores) == 0:
            raise ValueError("There are no test items to take a mean of.")

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def value(self) -> float:
        """The figure, a share where scores are."""
        # On the CPU: not every device has float64.
        scores = self.scores.cpu().double()
        if self.classes is None:
            return scores.mean().item()
        classes = self.classes.cpu()
        totals = torch.bincount(classes)
        sums = torch.bincount(classes, weights=scores)
        return (sums[totals > 0] / totals[totals > 0]).mean().item()

    def interval(self, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
        """The bootstrap interval of the figure; see [`bootstrap_interval`]."""
        return bootstrap_interval(self.scores, self.classes, level=level, resamples=resamples, seed=seed)

    def minus(self, other: "Measure") -> "Measure":
        """The paired difference of two measures of the same items: its interval is the paired one."""
        if len(self) != len(other):
            raise ValueError(
                f"Only measures of the same items can be compared, got {len(self)} and {len(other)} items."
            )
        return Measure(self.scores.cpu().double() - other.scores.cpu().double(), self.classes)


def bootstrap_interval(
    scores: Tensor, classes: Tensor | None = None, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    r"""
    Percentile interval of a mean under resampling of the items with replacement (Efron, 1979).

    Items of equal score (and class) are interchangeable, so that a resample is a draw of how often each distinct score
    occurs. This is exactly the bootstrap, at the cost of the distinct scores (two for an accuracy) and not of the items.

    Args:
        scores (`torch.Tensor` of shape `(num_items,)`):
            Each item's score, or the difference of two systems' scores on it.
        classes (`torch.Tensor` of shape `(num_items,)`, *optional*):
            Class of each item, for the mean over classes of class means. A class that a resample misses does not count
            in it.
        level (`float`, *optional*, defaults to 0.95):
            Coverage.
        resamples (`int`, *optional*, defaults to 2000):
            Number of resamples.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draws.

    Returns:
        `tuple(float, float)`: the lower and the upper end.
    """
    if classes is None:
        classes = torch.zeros(len(scores), dtype=torch.long)
    items = np.stack([classes.cpu().double().numpy(), scores.cpu().double().numpy()], axis=1)
    distinct, counts = np.unique(items, axis=0, return_counts=True)
    values = distinct[:, 1]
    first_of_class = np.flatnonzero(np.diff(distinct[:, 0], prepend=-1))

    generator = np.random.default_rng(seed)
    means = []
    at_once = max(1, MAX_COUNTS // len(distinct))
    for start in range(0, resamples, at_once):
        draws = generator.multinomial(len(scores), counts / len(scores), size=min(at_once, resamples - start))
        totals = np.add.reduceat(draws, first_of_class, axis=1)
        sums = np.add.reduceat(draws * values, first_of_class, axis=1)
        class_means = np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)
        means.append(class_means.sum(axis=1) / (totals > 0).sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
