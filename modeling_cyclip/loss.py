"""The loss of CyCLIP (Goel et al., 2022, https://huggingface.co/papers/2205.14459, section 3)."""

from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .balance import bounded_sum
from .blockwise import contrastive_loss, prepare_embeds, prepare_number, view_loss
from .configuration_cyclip import check_cyclic_terms
from .cyclic import CyclicProducts, prefers_whole_matrices, small_batch_loss
from .distributed import world_size
from .sigmoid import sigmoid_loss


class CyCLIPLossOutput(NamedTuple):
    r"""
    What [`cyclip_loss`] returns.

    Args:
        loss (`torch.Tensor` of shape `()`):
            The whole loss, the only part with a gradient.
        contrastive_loss (`torch.Tensor` of shape `()`):
            CLIP's contrastive term, in nats, or with a bias SigLIP's.
        inmodal_cyclic_loss (`torch.Tensor` of shape `()`, *optional*):
            The in-modal term, before its weight. `None` if the loss does not need it and it was not asked for.
        crossmodal_cyclic_loss (`torch.Tensor` of shape `()`, *optional*):
            The cross-modal term, before its weight, likewise.
        inmodal_contrastive_loss (`torch.Tensor` of shape `()`, *optional*):
            The in-modal contrastive term, in nats. Only a batch with augmented views has it.
        cyclic_gradient_factor (`torch.Tensor` of shape `()`, *optional*):
            The factor, at most 1, by which `cyclic_max_gradient_share` has lowered both weights in this batch. `None` without
            that bound.
    """

    loss: Tensor
    contrastive_loss: Tensor
    inmodal_cyclic_loss: Tensor | None
    crossmodal_cyclic_loss: Tensor | None
    inmodal_contrastive_loss: Tensor | None = None
    cyclic_gradient_factor: Tensor | None = None


@torch.compiler.disable
def cyclip_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    *,
    inmodal_cyclic_weight: float = 0.25,
    crossmodal_cyclic_weight: float = 0.25,
    cyclic_reference_batch_size: int | None = None,
    cyclic_max_gradient_share: float | None = None,
    augmented_image_embeds: Tensor | None = None,
    augmented_text_embeds: Tensor | None = None,
    return_all_parts: bool = True,
    process_group: dist.ProcessGroup | None = None,
) -> CyCLIPLossOutput:
    r"""
    CyCLIP's loss of N image-text pairs (paper, equation 4):

        contrastive + λ1 · in-modal + λ2 · cross-modal

    The result is exact, and no N×N matrix is built where N exceeds `dim`. The loss is computed in float32 (float64 for
    float64 embeddings), also under autocast, and can be differentiated once.

    With augmented views, the contrastive term is averaged with an in-modal contrastive term. This is the mean of two
    cross-entropies: that of finding each image's augmented view among all augmented images, and the same for captions.
    The official code calls this option `inmodal`. The cyclic terms use the original views only.

    Args:
        image_embeds (`torch.Tensor` of shape `(batch, dim)`):
            Unit-norm image embeddings I.
        text_embeds (`torch.Tensor` of shape `(batch, dim)`):
            Unit-norm text embeddings T, row by row the captions of the images.
        logit_scale (`torch.Tensor` of shape `()` or `float`):
            The positive multiplier of the cosines (one over the temperature), already exponentiated.
        logit_bias (`torch.Tensor` of shape `()` or `float`, *optional*):
            The bias of the logits. With one, the contrastive term is SigLIP's, [`sigmoid_loss`].
        inmodal_cyclic_weight (`float`, *optional*, defaults to 0.25):
            λ1. With both weights 0 the loss is CLIP's, and the two cyclic terms are only reported.
        crossmodal_cyclic_weight (`float`, *optional*, defaults to 0.25):
            λ2.
        cyclic_reference_batch_size (`int`, *optional*):
            The batch size R that the weights were chosen for: both are multiplied by R / N. `None` is the paper's loss.
        cyclic_max_gradient_share (`float`, *optional*):
            A bound ρ on the pull of the cyclic terms: where their gradient is longer than ρ times the contrastive loss's, both
            weights are lowered in this batch until it is as long. Both gradients are those at the embeddings, along the
            sphere. `None` is the paper's loss.
        augmented_image_embeds (`torch.Tensor` of shape `(batch, dim)`, *optional*):
            Unit-norm embeddings of the augmented images, in the same order as `image_embeds`.
        augmented_text_embeds (`torch.Tensor` of shape `(batch, dim)`, *optional*):
            Unit-norm embeddings of the augmented captions.
        return_all_parts (`bool`, *optional*, defaults to `True`):
            Whether to compute also what the loss does not need: terms of weight 0, and, in batches above 1.5 · `dim`, each of
            two terms of one weight. Otherwise these parts are `None`.
        process_group (`torch.distributed.ProcessGroup`, *optional*):
            Processes whose pairs make up one batch; all must hold equally many. Each process gets the loss of the whole
            batch. The average of their gradients is the gradient that one process with all the pairs would have.

    Returns:
        [`CyCLIPLossOutput`]: the loss, and its parts, unweighted and without gradient. For a loss of your own, use the
        differentiable terms of [`cyclic_regularisers`].

    Raises:
        `ValueError`: embeddings that are not matrices of one shape with at least one row, one augmented view without the
        other, augmented views with a bias, a negative weight, a reference batch below 1, or a share that is not positive.

    Example:

    ```python
    >>> import torch
    >>> from torch.nn.functional import normalize
    >>> from modeling_cyclip import cyclip_loss

    >>> image_embeds = normalize(torch.randn(128, 512), dim=-1)
    >>> text_embeds = normalize(torch.randn(128, 512), dim=-1)
    >>> loss = cyclip_loss(image_embeds, text_embeds, logit_scale=14.3).loss
    ```
    """
    check_cyclic_terms(
        inmodal_cyclic_weight, crossmodal_cyclic_weight, cyclic_reference_batch_size, cyclic_max_gradient_share
    )
    if (augmented_image_embeds is None) != (augmented_text_embeds is None):
        raise ValueError("`augmented_image_embeds` and `augmented_text_embeds` go together: pass both or neither.")
    views = () if augmented_image_embeds is None else (augmented_image_embeds, augmented_text_embeds)
    has_bias = logit_bias is not None
    if has_bias and views:
        raise ValueError(
            "The in-modal contrastive term of augmented views is a softmax: it does not go with a `logit_bias`."
        )
    image_embeds, text_embeds, *views = prepare_embeds(image_embeds, text_embeds, *views)
    logit_scale = prepare_number("logit_scale", logit_scale, image_embeds)
    bias = [prepare_number("logit_bias", logit_bias, image_embeds)] if has_bias else []

    batch_size = len(image_embeds) * world_size(process_group)
    relative_size = 1 if cyclic_reference_batch_size is None else cyclic_reference_batch_size / batch_size
    inmodal_weight, crossmodal_weight = relative_size * inmodal_cyclic_weight, relative_size * crossmodal_cyclic_weight
    is_cyclic = inmodal_weight + crossmodal_weight > 0

    is_bounded = is_cyclic and cyclic_max_gradient_share is not None

    is_small = prefers_whole_matrices(len(image_embeds), batch_size, image_embeds.shape[1])
    if is_cyclic and is_small and not views and not has_bias and not is_bounded:
        return CyCLIPLossOutput(
            *small_batch_loss(image_embeds, text_embeds, logit_scale, inmodal_weight, crossmodal_weight, process_group)
        )

    inputs = image_embeds, text_embeds, logit_scale, *bias, *views
    terms = partial(_terms, inmodal_weight, crossmodal_weight, batch_size, return_all_parts, process_group, has_bias)
    if not is_bounded:
        contrastive, cyclic, parts = terms(*inputs)
        return CyCLIPLossOutput(contrastive if cyclic is None else contrastive + cyclic, **parts)
    # The bound is the same where no gradient is asked for, also in inference mode, whose tensors autograd refuses.
    with torch.inference_mode(False), torch.enable_grad():
        leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)
        contrastive, cyclic, parts = terms(*leaves)
    loss, factor = bounded_sum(contrastive, cyclic, leaves, inputs, cyclic_max_gradient_share, process_group)
    return CyCLIPLossOutput(loss, **parts, cyclic_gradient_factor=factor)


def _terms(
    inmodal_weight: float,
    crossmodal_weight: float,
    batch_size: int,
    return_all_parts: bool,
    process_group: dist.ProcessGroup | None,
    has_bias: bool,
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    *others: Tensor,
) -> tuple[Tensor, Tensor | None, dict[str, Tensor | None]]:
    """The contrastive and the weighted cyclic part of the loss, both differentiable, and the parts to report."""
    bias, views = (others, ()) if has_bias else ((), others)
    contrastive_term = sigmoid_loss if has_bias else contrastive_loss
    contrastive = contrastive_term(image_embeds, text_embeds, logit_scale, *bias, process_group)
    parts = {"contrastive_loss": contrastive.detach()}
    if views:
        inmodal_contrastive = sum(
            view_loss(embeds, augmented, logit_scale, process_group) / 2
            for embeds, augmented in zip((image_embeds, text_embeds), views, strict=True)
        )
        parts["inmodal_contrastive_loss"] = inmodal_contrastive.detach()
        contrastive = (contrastive + inmodal_contrastive) / 2

    cyclic = inmodal = crossmodal = None
    is_cyclic = inmodal_weight + crossmodal_weight > 0
    needs_both = return_all_parts or inmodal_weight != crossmodal_weight
    if return_all_parts or is_cyclic:
        norm, transposed = CyclicProducts.apply(image_embeds, text_embeds, process_group, needs_both)
        if is_cyclic:
            cyclic = (inmodal_weight + crossmodal_weight) / (2 * batch_size) * norm
        if inmodal_weight != crossmodal_weight:
            cyclic = cyclic + (inmodal_weight - crossmodal_weight) / (2 * batch_size) * transposed
        if needs_both:
            inmodal = (norm + transposed).detach() / (2 * batch_size)
            crossmodal = (norm - transposed).detach() / (2 * batch_size)
    return contrastive, cyclic, {**parts, "inmodal_cyclic_loss": inmodal, "crossmodal_cyclic_loss": crossmodal}


@torch.compiler.disable
def cyclic_regularisers(image_embeds: Tensor, text_embeds: Tensor) -> tuple[Tensor, Tensor]:
    r"""
    The two cyclic consistency terms alone, for any dual encoder with its own loss (SigLIP, VisionTextDualEncoder):

        in-modal    = (1/N) Σ_jk (⟨I_j,I_k⟩ − ⟨T_j,T_k⟩)²        (paper, equation 3)
        cross-modal = (1/N) Σ_jk (⟨I_j,T_k⟩ − ⟨I_k,T_j⟩)²        (paper, equation 2)

    Args:
        image_embeds (`torch.Tensor` of shape `(batch, dim)`):
            Unit-norm image embeddings I.
        text_embeds (`torch.Tensor` of shape `(batch, dim)`):
            Unit-norm text embeddings T.

    Returns:
        `tuple(torch.Tensor, torch.Tensor)`: the in-modal and the cross-modal term, each of shape `()`, differentiable.

    Raises:
        `ValueError`: embeddings that are not two matrices of one shape with at least one row.

    Example:

    ```python
    >>> inmodal, crossmodal = cyclic_regularisers(image_embeds, text_embeds)
    >>> loss = own_loss + 0.25 * (inmodal + crossmodal)
    ```
    """
    image_embeds, text_embeds = prepare_embeds(image_embeds, text_embeds)
    norm, transposed = CyclicProducts.apply(image_embeds, text_embeds, None)
    return (norm + transposed) / (2 * len(image_embeds)), (norm - transposed) / (2 * len(image_embeds))
