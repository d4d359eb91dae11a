"""Zero-shot classification (CLIP, section 3.1; CyCLIP, section 4.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .intervals import Measure
from .ranking import nearest, rank_of, similarity_chunks


def zero_shot(
    image_embeds: Tensor, class_embeds: Tensor, labels: Tensor, topk: Sequence[int] = (1, 3, 5, 10)
) -> dict[str, Measure]:
    r"""
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
        The float is in `.value`, in [0, 1]. Of classes with equal similarity the one of the lower index counts as the
        better.

    Raises:
        `ValueError`: a label that is no class, other than one label an image.
    """
    check_labels(labels, len(image_embeds), len(class_embeds))
    ranks = torch.empty_like(labels)
    for rows, similarities in similarity_chunks(image_embeds, class_embeds):
        ranks[rows] = rank_of(similarities, labels[rows])
    measures = {f"top{k}": Measure((ranks < k).float()) for k in topk if k <= len(class_embeds)}
    return {**measures, "mean_per_class": Measure((ranks < 1).float(), labels)}


def predict(image_embeds: Tensor, class_embeds: Tensor) -> Tensor:
    """The most similar class of each image, of equal ones the lower, `(num_images,)`."""
    predictions = [nearest(similarities, 1)[:, 0] for _, similarities in similarity_chunks(image_embeds, class_embeds)]
    return torch.cat(predictions)


def check_labels(labels: Tensor, num_images: int, num_classes: int) -> None:
    """Refuses labels that are not one class an image."""
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
