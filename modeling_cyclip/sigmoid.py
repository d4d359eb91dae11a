"""The sigmoid loss of pairs (SigLIP; Zhai et al., 2023, https://huggingface.co/papers/2303.15343, section 3.2)."""

import torch
import torch.distributed as dist
from torch import Tensor

from .blockwise import LossWithGradients, full_precision, needs_gradients, number, prepare_embeds, prepare_number
from .distributed import all_reduce_sum, gather_rows, rank, reduce_scatter_rows
from .softmaxes import BLOCK_BYTES


@torch.compiler.disable
def sigmoid_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""
    SigLIP's loss of N image-text pairs, in which every image and every text are asked whether they belong together:

        −(1/N) Σ_ij log σ(z_ij · (s · ⟨I_i,T_j⟩ + b))        z_ij = 1 where i = j, and −1 elsewhere

    The result is exact, in memory linear in N. It is that of transformers' `SiglipModel` and of big_vision. The loss is
    computed in float32 (float64 for float64 embeddings), also under autocast, and can be differentiated once.

    Args:
        image_embeds (`torch.Tensor` of shape `(batch, dim)`):
            Unit-norm image embeddings I.
        text_embeds (`torch.Tensor` of shape `(batch, dim)`):
            Unit-norm text embeddings T, row by row the captions of the images.
        logit_scale (`torch.Tensor` of shape `()` or `float`):
            The multiplier s of the cosines, already exponentiated.
        logit_bias (`torch.Tensor` of shape `()` or `float`):
            The bias b of the logits. SigLIP starts at −10, since nearly all of the N² pairs do not belong together.
        process_group (`torch.distributed.ProcessGroup`, *optional*):
            Processes whose pairs make up one batch; all must hold equally many. Each process gets the loss of the whole
            batch. The average of their gradients is the gradient that one process with all the pairs would have.

    Returns:
        `torch.Tensor` of shape `()`: the loss, differentiable in the embeddings, the scale and the bias.

    Raises:
        `ValueError`: embeddings that are not two matrices of one shape with at least one row, or a scale or bias that is not
        one number.

    Example:

    ```python
    >>> import torch
    >>> from torch.nn.functional import normalize
    >>> from modeling_cyclip import sigmoid_loss

    >>> image_embeds = normalize(torch.randn(128, 512), dim=-1)
    >>> text_embeds = normalize(torch.randn(128, 512), dim=-1)
    >>> loss = sigmoid_loss(image_embeds, text_embeds, logit_scale=10.0, logit_bias=-10.0)
    ```
    """
    image_embeds, text_embeds = prepare_embeds(image_embeds, text_embeds)
    logit_scale = prepare_number("logit_scale", logit_scale, image_embeds)
    logit_bias = prepare_number("logit_bias", logit_bias, image_embeds)
    inputs = image_embeds, text_embeds, logit_scale, logit_bias
    needs_image_grad, needs_text_grad, needs_scale_grad, needs_bias_grad = needs = needs_gradients(*inputs)
    with torch.no_grad(), full_precision(image_embeds.device.type):
        all_text_embeds = gather_rows(text_embeds, process_group)
        num_rows, num_columns = len(image_embeds), len(all_text_embeds)
        first_column = rank(process_group) * num_rows
        # With W processes, the gradients are W / N times those of the sum.
        factor = 1 / num_rows
        scale, bias = number(logit_scale), logit_bias.detach().expand(num_columns)
        zero = torch.zeros_like(logit_bias)

        total = grad_bias = 0
        grad_image = grad_text = grad_scale = None
        # The scale multiplies the embeddings, so its gradient follows from that of either kind.
        if needs_image_grad or (needs_scale_grad and not needs_text_grad):
            grad_image = torch.empty_like(image_embeds)
        if needs_text_grad:
            grad_text = torch.empty_like(all_text_embeds)
        # No logit is needed twice. Blocks are therefore small also where all logits would fit into memory.
        block_size = max(1, BLOCK_BYTES // (num_columns * image_embeds.element_size()))
        logits, losses = (image_embeds.new_empty(min(block_size, num_rows), num_columns) for _ in range(2))
        for start in range(0, num_rows, block_size):
            rows = slice(start, start + block_size)
            images = image_embeds[rows] * scale
            block = torch.addmm(bias, images, all_text_embeds.T, out=logits[: len(images)])
            pairs = block.diagonal(first_column + start)
            # −log σ(z · logit) = log(1 + exp(−z · logit)), whose derivative is σ(−z · logit).
            pairs.neg_()
            total += torch.logaddexp(block, zero, out=losses[: len(images)]).sum()
            if any(needs):
                block.sigmoid_()
                pairs.neg_()
            if needs_bias_grad:
                grad_bias += block.sum()
            if grad_image is not None:
                torch.mm(block, all_text_embeds, out=grad_image[rows])
            if grad_text is not None:
                grad_text.addmm_(block.T, images, beta=float(start > 0), alpha=factor)
        loss = all_reduce_sum(total, process_group) / num_columns
        if not any(needs):
            return loss

        if needs_scale_grad and grad_image is not None:
            grad_scale = torch.linalg.vecdot(grad_image, image_embeds).sum() * factor
        elif needs_scale_grad:
            grad_scale = torch.linalg.vecdot(grad_text, all_text_embeds).sum() / scale
        grad_image = grad_image.mul_(scale * factor) if needs_image_grad else None
        grad_text = reduce_scatter_rows(grad_text, process_group) if needs_text_grad else None
        grad_bias = grad_bias * factor if needs_bias_grad else None
    return LossWithGradients.apply((loss, grad_image, grad_text, grad_scale, grad_bias), *inputs)
