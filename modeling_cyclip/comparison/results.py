"""Figures of all trainings of a comparison: over seeds, and against the baseline on the same test items."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t

from ..evaluation.centring import CENTRED
from ..evaluation.intervals import Measure


@dataclass(frozen=True)
class Difference:
    r"""
    A figure of an arm minus the baseline's, the mean over seeds.

    Args:
        value (`float`):
            The difference.
        items (`tuple(float, float)`, *optional*):
            95 % bootstrap interval under resampling of the test items: paired, both arms on the same items. It holds for
            these trained models. `None` for figures that are no mean over items.
        seeds (`tuple(float, float)`, *optional*):
            95 % interval of the difference of trainings with other seeds, by Student's t. `None` with a single seed.
    """

    value: float
    items: tuple[float, float] | None
    seeds: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """What may be said of it, in words."""
        direction = "higher" if self.value > 0 else "lower"
        if self.items is not None and self.items[0] <= 0 <= self.items[1]:
            return "no difference shown: the interval over test items includes zero"
        if self.seeds is None:
            return f"{direction} with this one seed, which says nothing of the next"
        if self.seeds[0] <= 0 <= self.seeds[1]:
            return f"{direction} for these models, but no difference shown: the interval over seeds includes zero"
        return direction


def number(figure: Measure | float) -> float:
    return figure.value if isinstance(figure, Measure) else figure


def mean_and_std(figures: Sequence[Measure | float]) -> tuple[float, float | None]:
    """Mean and standard deviation (of a sample) over seeds; no deviation of a single one."""
    numbers = [number(figure) for figure in figures]
    return float(np.mean(numbers)), float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None


def difference(figures: Sequence[Measure | float], baseline: Sequence[Measure | float], seed: int = 0) -> Difference:
    r"""
    Args:
        figures (`Sequence[Measure]` or `Sequence[float]`):
            A figure of one arm, by seed.
        baseline (`Sequence[Measure]` or `Sequence[float]`):
            The same of the baseline, with the same seeds.
        seed (`int`, *optional*, defaults to 0):
            Seed of the resampling.

    Returns:
        [`Difference`]
    """
    items = None
    if isinstance(figures[0], Measure):
        by_seed = [figure.minus(other) for figure, other in zip(figures, baseline, strict=True)]
        scores = torch.stack([measure.scores for measure in by_seed]).mean(dim=0)
        items = Measure(scores, by_seed[0].classes).interval(seed=seed)
    differences = [number(figure) - number(other) for figure, other in zip(figures, baseline, strict=True)]
    mean, std = mean_and_std(differences)
    seeds = None
    if std is not None:
        half = float(t.ppf(0.975, len(differences) - 1)) * std / math.sqrt(len(differences))
        seeds = (mean - half, mean + half)
    return Difference(mean, items, seeds)


def without_means(results: dict[str, dict]) -> dict[str, dict]:
    """Of results with and without the modalities' means, those without, under the protocols' own names."""
    return {task.removesuffix(CENTRED): figures for task, figures in results.items() if task.endswith(CENTRED)}


def with_means(results: dict[str, dict]) -> dict[str, dict]:
    """Of results with and without the modalities' means, those with."""
    return {task: figures for task, figures in results.items() if not task.endswith(CENTRED)}
