"""
Natural distribution shift (Taori et al., 2020; CyCLIP, section 4.3).

Effective robustness is accuracy under shift above what accuracy without it lets expect. Relative robustness, accuracy
under shift above that of a model without the intervention, is a paired difference of two checkpoints' measures.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .intervals import Measure
from .zero_shot import predict


@dataclass(frozen=True)
class BaselineLine:
    r"""
    Accuracy under shift that a model's accuracy on the unshifted set lets expect, both in percent.

    Args:
        slope (`float`):
            Points under shift for a point without.
        intercept (`float`):
            Points under shift at an accuracy of zero.
    """

    slope: float
    intercept: float

    def expected(self, accuracy: float) -> float:
        return self.slope * accuracy + self.intercept


def fit_line(points: Sequence[tuple[float, float]]) -> BaselineLine:
    r"""
    Least squares over baseline models.

    Args:
        points (`Sequence[tuple[float, float]]`):
            Accuracy without and with the shift of each model, in percent.

    Returns:
        [`BaselineLine`]

    Raises:
        `ValueError`: fewer than two different accuracies, through which there is no line.
    """
    accuracies, shifted = np.asarray(points, dtype=float).reshape(-1, 2).T
    if len(np.unique(accuracies)) < 2:
        raise ValueError("A baseline line needs models of at least two different accuracies.")
    slope, intercept = np.polyfit(accuracies, shifted, deg=1)
    return BaselineLine(float(slope), float(intercept))


def effective_robustness(accuracy: float, shifted_accuracy: float, line: BaselineLine) -> float:
    """Percentage points of accuracy under shift above what the line lets expect (Taori et al., section 2)."""
    return shifted_accuracy - line.expected(accuracy)


def matched_accuracy(
    image_embeds: Tensor,
    class_embeds: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    shifted_class_names: Sequence[str],
    shifted_labels: Tensor,
) -> Measure:
    r"""
    Top-1 accuracy of the unshifted set on what it has in common with a shifted one: the classes that the shifted set
    names are the candidates, and the images are those of the classes that it has images of. Sets such as ImageNet-A
    have a subset of the classes; accuracies over different classes say nothing of the shift.

    Args:
        image_embeds (`torch.Tensor` of shape `(num_images, dim)`):
            Unit-norm embeddings of the unshifted images.
        class_embeds (`torch.Tensor` of shape `(num_classes, dim)`):
            Unit-norm class embeddings.
        labels (`torch.Tensor` of shape `(num_images,)`):
            Classes of the unshifted images.
        class_names, shifted_class_names (`Sequence[str]`):
            Names of the classes of both sets.
        shifted_labels (`torch.Tensor`):
            Classes of the shifted images.

    Returns:
        [`Measure`]

    Raises:
        `ValueError`: a class of the shifted set that the unshifted set does not have, or none of its images.
    """
    position = {name: label for label, name in enumerate(_numbered(class_names))}
    if missing := [name for name in _numbered(shifted_class_names) if name not in position]:
        raise ValueError(
            f"The shifted set's class '{missing[0][0]}' is not among the {len(class_names)} classes of the unshifted set."
        )
    candidates = torch.tensor([position[name] for name in _numbered(shifted_class_names)], device=labels.device)
    present = candidates[shifted_labels.unique()]
    rows = torch.isin(labels, present)
    if not rows.any():
        raise ValueError("The unshifted set has no image of the classes that the shifted set has images of.")
    predictions = candidates[predict(image_embeds[rows], class_embeds[candidates])]
    return Measure((predictions == labels[rows]).float())


def _numbered(names: Sequence[str]) -> list[tuple[str, int]]:
    """Names with their number among equal ones: some sets have two classes of one name."""
    seen, numbered = Counter(), []
    for name in names:
        numbered.append((name, seen[name]))
        seen[name] += 1
    return numbered
