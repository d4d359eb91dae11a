"""Fine-grained and coarse-grained classification (CyCLIP, section 5.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .intervals import Measure
from .ranking import rank_of, similarity_chunks
from .zero_shot import check_labels


def fine_coarse(
    image_embeds: Tensor,
    class_embeds: Tensor,
    labels: Tensor,
    superclasses: Tensor,
    topk: Sequence[int] = (1, 2, 3),
) -> dict[str, Measure]:
    r"""
    Fine: the right class among the classes of its own superclass. Coarse: the right superclass among all, the score of a
    superclass being that of its best class.

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
    fine = {f"fine_top{k}": Measure((fine_ranks < k).float()) for k in topk}
    return {**fine, **{f"coarse_top{k}": Measure((coarse_ranks < k).float()) for k in topk}}
