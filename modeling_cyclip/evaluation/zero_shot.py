"""
Classification by text: zero-shot (CLIP, section 3.1; CyCLIP, section 4.1), in fine and coarse classes (CyCLIP, section
5.2), and under natural distribution shift (Taori et al., 2020; CyCLIP, section 4.3).

Effective robustness is how far a model's accuracy under shift exceeds what its accuracy without the shift lets expect.
Relative robustness is how far it exceeds that of a model without the intervention: a paired difference of two checkpoints'
measures.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .intervals import Measure
from .ranking import nearest, rank_of, similarity_chunks


def zero_shot(
    image_embeds: Tensor, class_embeds: Tensor, labels: Tensor, topk: Sequence[int] = (1, 3, 5, 10)
) -> dict[str, Measure]:
    r"""
    Top-k accuracy of the classes whose embeddings are most similar to an image.

    Args:
        image_embeds (`torch.Tensor` of shape `(num_images, dim)`):
            Unit-norm image embeddings.
        class_embeds (`torch.Tensor` of shape `(num_classes, dim)`):
            Unit-norm class embeddings.
        labels (`torch.Tensor` of shape `(num_images,)`):
            The right class of each image.
        topk (`Sequence[int]`, *optional*, defaults to `(1, 3, 5, 10)`):
            How many guesses an image has. Numbers beyond the number of classes are left out.

    Returns:
        `dict[str, Measure]`: `top1`, `top3`, ... and `mean_per_class`, the mean over classes of their top-1 accuracy.
        The float is in `.value`, in [0, 1]. Among classes with equal similarity the one of the lower index counts as
        the better.

    Raises:
        `ValueError`: a label that is no class, or not one label for each image.
    """
    check_labels(labels, len(image_embeds), len(class_embeds))
    ranks = torch.empty_like(labels)
    for rows, similarities in similarity_chunks(image_embeds, class_embeds):
        ranks[rows] = rank_of(similarities, labels[rows])
    num_classes = len(class_embeds)
    measures = {f"top{k}": Measure((ranks < k).float(), chance=k / num_classes) for k in topk if k <= num_classes}
    return {**measures, "mean_per_class": Measure((ranks < 1).float(), labels, chance=1 / num_classes)}


def predict(image_embeds: Tensor, class_embeds: Tensor) -> Tensor:
    """The most similar class of each image, `(num_images,)`; the lower index among equally similar ones."""
    predictions = [nearest(similarities, 1)[:, 0] for _, similarities in similarity_chunks(image_embeds, class_embeds)]
    return torch.cat(predictions)


def check_labels(labels: Tensor, num_images: int, num_classes: int) -> None:
    """Refuses labels that are not one class for each image."""
    if labels.shape != (num_images,):
        raise ValueError(f"{num_images} images need as many labels, got a tensor of shape {tuple(labels.shape)}.")
    if num_images == 0:
        raise ValueError("There are no test images.")
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"Row {row} has label {int(labels[row])}, but there are only {num_classes} class names (labels 0 to "
            f"{num_classes - 1})."
        )


def fine_coarse(
    image_embeds: Tensor, class_embeds: Tensor, labels: Tensor, superclasses: Tensor, topk: Sequence[int] = (1, 2, 3)
) -> dict[str, Measure]:
    r"""
    Fine: the right class is found among the classes of its own superclass. Coarse: the right superclass is found among all
    superclasses, each with the score of its best class.

    Args:
        image_embeds (`torch.Tensor` of shape `(num_images, dim)`):
            Unit-norm image embeddings.
        class_embeds (`torch.Tensor` of shape `(num_classes, dim)`):
            Unit-norm class embeddings.
        labels (`torch.Tensor` of shape `(num_images,)`):
            The right class of each image.
        superclasses (`torch.Tensor` of shape `(num_classes,)`):
            Superclass of each class, numbered from 0 without gaps.
        topk (`Sequence[int]`, *optional*, defaults to `(1, 2, 3)`):
            How many guesses an image has.

    Returns:
        `dict[str, Measure]`: `fine_top1`, ..., `coarse_top1`, ...

    Raises:
        `ValueError`: a label that is no class, a class without superclass, a superclass without classes.
    """
    check_labels(labels, len(image_embeds), len(class_embeds))
    if superclasses.shape != (len(class_embeds),):
        raise ValueError(
            f"{len(class_embeds)} classes need a superclass each, got a tensor of shape {tuple(superclasses.shape)}."
        )
    sizes = torch.bincount(superclasses)
    if (sizes == 0).any():
        raise ValueError(f"Superclass {int((sizes == 0).nonzero()[0, 0])} is empty: no class belongs to it.")

    fine_ranks, coarse_ranks = torch.empty_like(labels), torch.empty_like(labels)
    for rows, similarities in similarity_chunks(image_embeds, class_embeds):
        own = superclasses[labels[rows]]
        siblings = superclasses[None, :] == own[:, None]
        fine_ranks[rows] = rank_of(similarities.masked_fill(~siblings, float("-inf")), labels[rows])
        best = torch.stack([similarities[:, superclasses == group].amax(dim=1) for group in range(len(sizes))], dim=1)
        coarse_ranks[rows] = rank_of(best, own)
    own_sizes = sizes[superclasses[labels]]
    fine = {
        f"fine_top{k}": Measure((fine_ranks < k).float(), chance=(k / own_sizes).clamp(max=1).mean().item())
        for k in topk
    }
    counts, images = Counter(sizes.tolist()), Counter(own_sizes.tolist())
    coarse = {}
    for k in topk:
        drawn = sum(
            number * _chance_of_superclass(size, counts - Counter([size]), k) for size, number in images.items()
        )
        coarse[f"coarse_top{k}"] = Measure((coarse_ranks < k).float(), chance=drawn / len(labels))
    return fine | coarse


def _chance_of_superclass(size: int, others: Counter[int], guesses: int) -> float:
    """
    How probably a superclass of `size` classes comes among the first `guesses` ones if classes come in random order.
    `others` counts the other superclasses by their sizes.
    """
    num_classes = size + sum(other * number for other, number in others.items())
    chance = size / num_classes
    if guesses > 1:
        for other, number in others.items():
            first = other * number / num_classes
            chance += first * _chance_of_superclass(size, others - Counter([other]), guesses - 1)
    return chance


@dataclass(frozen=True)
class BaselineLine:
    """The accuracy to expect under shift, as a line over the accuracy without it, both in percent."""

    slope: float
    intercept: float


def fit_line(points: Sequence[tuple[float, float]]) -> BaselineLine:
    """The line through baseline models by least squares, from the accuracies of each without and with the shift."""
    accuracies, shifted = np.asarray(points, dtype=float).reshape(-1, 2).T
    if len(np.unique(accuracies)) < 2:
        raise ValueError("A baseline line needs models of at least two different accuracies.")
    slope, intercept = np.polyfit(accuracies, shifted, deg=1)
    return BaselineLine(float(slope), float(intercept))


def effective_robustness(accuracy: float, shifted_accuracy: float, line: BaselineLine) -> float:
    """How many percentage points the accuracy under shift lies above the line (Taori et al., section 2)."""
    return shifted_accuracy - (line.slope * accuracy + line.intercept)


def matched_accuracy(
    image_embeds: Tensor,
    class_embeds: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    shifted_class_names: Sequence[str],
    shifted_labels: Tensor,
) -> Measure:
    """
    Top-1 accuracy of the unshifted set on what it has in common with a shifted one. The candidates are the classes that
    the shifted set names, and the images are those of the classes that it has images of. Sets such as ImageNet-A have a
    subset of the classes, and accuracies over different classes say nothing of the shift.

    Embeddings and `labels` are those of the unshifted set, as of [`zero_shot`].
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
    return Measure((predictions == labels[rows]).float(), chance=1 / len(candidates))


def _numbered(names: Sequence[str]) -> list[tuple[str, int]]:
    """Names with their number among equal ones: some sets have two classes of one name."""
    seen, numbered = Counter(), []
    for name in names:
        numbered.append((name, seen[name]))
        seen[name] += 1
    return numbered
