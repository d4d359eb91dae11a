"""The two numbers that both cyclic consistency terms are made of, without N×N matrices where N exceeds d."""

import torch
import torch.distributed as dist
from torch import Tensor

from .blockwise import full_precision, refuse_second_derivatives
from .distributed import all_reduce_sum, world_size


class CyclicProducts(torch.autograd.Function):
    """
    ‖Y‖² and ⟨Y,Yᵀ⟩ of the N×N matrix Y = S·Dᵀ, where S = I + T and D = I − T.

    The symmetric part of Y is IIᵀ − TTᵀ, its antisymmetric part TIᵀ − ITᵀ, so that the paper's terms are

        in-modal = (‖Y‖² + ⟨Y,Yᵀ⟩) / 2N        cross-modal = (‖Y‖² − ⟨Y,Yᵀ⟩) / 2N

    By d×d Gram matrices A = SᵀS, B = DᵀD, X = SᵀD they are ⟨A,B⟩ and ⟨X,Xᵀ⟩. Y is the cheaper way where N ≤ d. Over
    several processes the Gram matrices are: they are sums over the rows, one all-reduce of 3·d² numbers.

    Working with S and D rather than I and T keeps the rounding small when the two spaces agree. A product that takes no
    part in the loss costs nothing in the backward pass.
    """

    @staticmethod
    def forward(
        ctx, image_embeds: Tensor, text_embeds: Tensor, process_group: dist.ProcessGroup | None
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.world_size = world_size(process_group)
        total, difference = image_embeds + text_embeds, image_embeds - text_embeds
        ctx.dense = process_group is None and image_embeds.shape[0] <= image_embeds.shape[1]
        with full_precision(image_embeds.device.type):
            if ctx.dense:
                mixed = total @ difference.T
                norm = mixed.square().sum()
                ctx.save_for_backward(total, difference, mixed)
            else:
                grams = torch.stack([total.T @ total, difference.T @ difference, total.T @ difference])
                total_gram, difference_gram, mixed = all_reduce_sum(grams, process_group)
                norm = (total_gram * difference_gram).sum()
                ctx.save_for_backward(total, difference, mixed, total_gram, difference_gram)
            return norm, (mixed * mixed.T).sum()

    @staticmethod
    def backward(ctx, grad_norm: Tensor | None, grad_transposed: Tensor | None):
        refuse_second_derivatives()
        if grad_norm is None and grad_transposed is None:
            return None, None, None
        total, difference, mixed, *grams = ctx.saved_tensors
        with full_precision(total.device.type):
            if ctx.dense:
                grad_mixed = 0
                if grad_norm is not None:
                    grad_mixed = grad_mixed + 2 * grad_norm * mixed
                if grad_transposed is not None:
                    grad_mixed = grad_mixed + 2 * grad_transposed * mixed.T
                grad_total, grad_difference = grad_mixed @ difference, grad_mixed.T @ total
            else:
                total_gram, difference_gram = grams
                grad_total = grad_difference = 0
                factor = 2 * ctx.world_size
                if grad_norm is not None:
                    grad_total = total @ (factor * grad_norm * difference_gram)
                    grad_difference = difference @ (factor * grad_norm * total_gram)
                if grad_transposed is not None:
                    scaled = factor * grad_transposed * mixed
                    grad_total = grad_total + difference @ scaled
                    grad_difference = grad_difference + total @ scaled.T
        return grad_total + grad_difference, grad_total - grad_difference, None
