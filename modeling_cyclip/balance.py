"""A bound on the gradient of the cyclic terms, as a share of the contrastive loss's."""

import torch
import torch.distributed as dist
from torch import Tensor

from .blockwise import LossWithGradients
from .distributed import all_reduce_sum


def bounded_sum(
    contrastive: Tensor,
    cyclic: Tensor,
    leaves: tuple[Tensor, ...],
    inputs: tuple[Tensor, ...],
    max_gradient_share: float,
    process_group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor]:
    """
    `contrastive + factor · cyclic`, differentiable in `inputs`, and the factor: the largest one up to 1 at which the cyclic
    gradient is at most `max_gradient_share` times as long as the contrastive one.

    Lengths are those of the gradients at the image and text embeddings of the whole batch, all in one vector, without what
    normalisation takes away: the part along each embedding. The factor is a constant for the gradient. `contrastive` and
    `cyclic` have been computed from `leaves`, detached copies of `inputs`, of which the embeddings come first.
    """
    embeds = leaves[:2]
    grads = torch.autograd.grad(contrastive, leaves)
    cyclic_grads = torch.autograd.grad(cyclic, embeds)
    with torch.no_grad():
        squares = torch.stack([_squared_length(grads[:2], embeds), _squared_length(cyclic_grads, embeds)])
        own, others = all_reduce_sum(squares, process_group).sqrt()
        # Where neither has a gradient, any factor will do.
        factor = (max_gradient_share * own / others.clamp(min=torch.finfo(own.dtype).tiny)).clamp(max=1)
        for grad, cyclic_grad in zip(grads[:2], cyclic_grads, strict=True):
            grad.addcmul_(cyclic_grad, factor)
        loss = contrastive + factor * cyclic
    return LossWithGradients.apply((loss, *grads), *inputs), factor


def _squared_length(grads: tuple[Tensor, ...], embeds: tuple[Tensor, ...]) -> Tensor:
    total = grads[0].new_zeros(())
    for grad, embed in zip(grads, embeds, strict=True):
        along = torch.linalg.vecdot(grad, embed)
        tangential = torch.addcmul(grad, embed, along[:, None], value=-1)
        total += tangential.square().sum()
    return total
