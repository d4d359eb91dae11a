"""What the page answers, as functions of embeddings: zero-shot classification, nearest neighbours, whether they agree."""

from collections.abc import Sequence

import torch
from torch import Tensor

from modeling_cyclip.evaluation.ranking import majority_votes


def zero_shot(image_embed: Tensor, label_embeds: Tensor, logit_scale: float) -> list[float]:
    r"""
    Args:
        image_embed (`torch.Tensor` of shape `(dim,)`):
            Unit-norm embedding of the image.
        label_embeds (`torch.Tensor` of shape `(num_labels, dim)`):
            Unit-norm embeddings of the labels.
        logit_scale (`float`):
            The model's positive multiplier of cosines.

    Returns:
        `list[float]`: each label's probability.
    """
    return (logit_scale * (label_embeds @ image_embed)).softmax(dim=0).tolist()


def most_similar(query: Tensor, embeds: Tensor, count: int) -> list[tuple[int, float]]:
    r"""
    Args:
        query (`torch.Tensor` of shape `(dim,)`):
            Unit-norm embedding of an image or a text.
        embeds (`torch.Tensor` of shape `(num_images, dim)`):
            Unit-norm embeddings of the images to choose from.
        count (`int`):
            How many; all of them, if there are fewer.

    Returns:
        `list[tuple[int, float]]`: row and cosine of the most similar images, the most similar first.
    """
    cosines, rows = (embeds @ query).sort(descending=True, stable=True)
    return list(zip(rows[:count].tolist(), cosines[:count].tolist(), strict=True))


def majority(classes: Sequence[str]) -> str:
    """The most frequent class, nearest first. Where several lead, the farthest neighbours lose their vote until one does."""
    names = sorted(set(classes))
    labels = torch.tensor([[names.index(name) for name in classes]])
    return names[majority_votes(labels, [len(classes)])[len(classes)].item()]


def agree(label: str, neighbours_class: str, labels: Sequence[str]) -> bool | None:
    """Whether both answers are the same; `None` if the class of the neighbours is none of the labels to choose from."""
    if _plain(neighbours_class) not in map(_plain, labels):
        return None
    return _plain(label) == _plain(neighbours_class)


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()
