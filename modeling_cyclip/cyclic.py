"""The cyclic terms: alone, by whichever matrices are smaller, and together with the contrastive loss of a small batch."""

import torch
import torch.distributed as dist
from torch import Tensor

from .blockwise import (
    LossWithGradients,
    find_softmaxes,
    full_precision,
    needs_gradients,
    number,
    refuse_second_derivatives,
)
from .distributed import all_reduce_sum, gather_rows, reduce_scatter_rows, world_size
from .softmaxes import MAX_STORED_LOGITS


class CyclicProducts(torch.autograd.Function):
    """
    ‖Y‖² and ⟨Y,Yᵀ⟩ of the N×N matrix Y = S·Dᵀ, where S = I + T and D = I − T.

    The symmetric part of Y is IIᵀ − TTᵀ, and its antisymmetric part is TIᵀ − ITᵀ, so the paper's terms are

        in-modal = (‖Y‖² + ⟨Y,Yᵀ⟩) / 2N        cross-modal = (‖Y‖² − ⟨Y,Yᵀ⟩) / 2N

    The two products are also ⟨A,B⟩ and ⟨X,Xᵀ⟩, with the d×d Gram matrices A = SᵀS, B = DᵀD and X = SᵀD. Y is cheaper
    where N ≤ d. Several processes always use the Gram matrices: they are sums over rows, so that one all-reduce combines
    them.

    S and D keep the rounding error smaller than I and T do when the two spaces agree. A product that is not part of the
    loss costs nothing in the backward pass, and `with_transposed=False` leaves out ⟨Y,Yᵀ⟩ and its Gram matrix.
    """

    @staticmethod
    def forward(
        ctx,
        image_embeds: Tensor,
        text_embeds: Tensor,
        process_group: dist.ProcessGroup | None,
        with_transposed: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.world_size = world_size(process_group)
        total, difference = image_embeds + text_embeds, image_embeds - text_embeds
        ctx.dense = process_group is None and image_embeds.shape[0] <= image_embeds.shape[1]
        with full_precision(image_embeds.device.type):
            if ctx.dense:
                mixed = total @ difference.T
                norm = _squared_norm(mixed)
                ctx.save_for_backward(total, difference, mixed)
            else:
                grams = [total.T @ total, difference.T @ difference]
                if with_transposed:
                    grams.append(total.T @ difference)
                grams = all_reduce_sum(torch.stack(grams), process_group)
                norm = (grams[0] * grams[1]).sum()
                mixed = grams[-1]
                ctx.save_for_backward(total, difference, mixed, grams[0], grams[1])
            return norm, (mixed * mixed.T).sum() if with_transposed else None

    @staticmethod
    def backward(ctx, grad_norm: Tensor | None, grad_transposed: Tensor | None):
        refuse_second_derivatives()
        if grad_norm is None and grad_transposed is None:
            return None, None, None, None
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
        return grad_total + grad_difference, grad_total - grad_difference, None, None


def prefers_whole_matrices(num_rows: int, num_columns: int, dim: int) -> bool:
    """
    Whether [`small_batch_loss`] is the cheaper way: its two further products of N²·d, and their passes over N², take less
    than the four of N·d² with Gram matrices.
    """
    return num_rows * num_columns <= MAX_STORED_LOGITS and 2 * num_columns <= 3 * dim


def small_batch_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    inmodal_cyclic_weight: float,
    crossmodal_cyclic_weight: float,
    process_group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    The loss, differentiable, and its three parts, from whole matrices in five products of N²·d.

    With C = ITᵀ and Y = S·Dᵀ as in [`CyclicProducts`], K = (Y + Yᵀ) / 2 = IIᵀ − TTᵀ and Z = (Yᵀ − Y) / 2 = C − Cᵀ give the
    in-modal and the cross-modal term. With H = ∂loss/∂C, the cross-modal term included, and κ = 4·λ1/N, the gradients

        ∂I = H·T + κK·I        ∂T = Hᵀ·I − κK·T

    take three products and not four, since κK·I = κK·S − κK·T:

        ∂I = κK·S + (H − κK)·T        ∂T = (H + κK)ᵀ·I − κK·S

    With a process group, every process computes its rows of these matrices, and gathers the embeddings of all.
    """
    needs = needs_gradients(image_embeds, text_embeds, logit_scale)
    with torch.no_grad(), full_precision(image_embeds.device.type):
        (num_rows, dim), scale = image_embeds.shape, number(logit_scale)
        all_images, all_texts = image_embeds, text_embeds
        if process_group is not None:
            both = gather_rows(torch.cat([image_embeds, text_embeds], dim=1), process_group)
            all_images, all_texts = both.split(dim, dim=1)
        n = len(all_images)
        cosines = image_embeds @ all_texts.T
        softmaxes, block = find_softmaxes(
            lambda rows: cosines * scale, [slice(0, num_rows)], cosines.shape, scale, process_group
        )
        total, difference = image_embeds + text_embeds, image_embeds - text_embeds
        all_total, all_difference = total, difference
        if process_group is not None:
            all_total, all_difference = all_images + all_texts, all_images - all_texts
        mixed = total @ all_difference.T
        # Reading a matrix against its order in memory is slow: one copy beats two such reads.
        transposed = mixed.T.contiguous() if process_group is None else difference @ all_total.T
        symmetric = mixed + transposed  # 2K
        antisymmetric = transposed.sub_(mixed)  # 2Z
        sums = softmaxes.gaps.sum(), _squared_norm(symmetric), _squared_norm(antisymmetric)
        if process_group is not None:
            sums = all_reduce_sum(torch.stack(sums), process_group)
        contrastive, inmodal, crossmodal = sums[0] / (2 * n), sums[1] / (4 * n), sums[2] / (4 * n)
        loss = contrastive.add(inmodal, alpha=inmodal_cyclic_weight).add_(crossmodal, alpha=crossmodal_cyclic_weight)
        if not any(needs):
            return loss, contrastive, inmodal, crossmodal

        processes = world_size(process_group)
        grad_cosines = softmaxes.grad_logits(slice(0, num_rows), block)
        grad_image = grad_text = grad_scale = None
        if needs[2]:
            grad_scale = torch.linalg.vecdot(cosines, grad_cosines).sum() / scale
        grad_cosines.add_(antisymmetric, alpha=2 * crossmodal_cyclic_weight * processes / n)  # H
        symmetric.mul_(2 * inmodal_cyclic_weight * processes / n)  # κK
        shared = symmetric @ all_total
        if needs[0]:
            grad_image = torch.addmm(shared, torch.sub(grad_cosines, symmetric, out=mixed), all_texts)
        if needs[1]:
            grad_text = grad_cosines.add_(symmetric).T @ image_embeds
            grad_text = reduce_scatter_rows(grad_text, process_group).sub_(shared)
    loss = LossWithGradients.apply((loss, grad_image, grad_text, grad_scale), image_embeds, text_embeds, logit_scale)
    return loss, contrastive, inmodal, crossmodal


def _squared_norm(matrix: Tensor) -> Tensor:
    # Norms of rows first: a sum over all entries at once rounds more.
    norms = torch.linalg.vector_norm(matrix, dim=1)
    return torch.dot(norms, norms)
