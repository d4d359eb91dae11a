"""The contrastive loss of pairs, that of two views, and in-batch recall, by blocks of rows of the N×N logits."""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor

from .distributed import all_reduce_sum, gather_rows, rank, reduce_scatter_rows, world_size
from .softmaxes import OneExponential, TwoExponentials, row_blocks


@contextmanager
def full_precision(device_type: str):
    """Computes products of float32 matrices in float32: neither autocast nor TF32 applies."""
    autocast = torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()
    with autocast:
        if device_type != "cuda":
            yield
            return
        previous = torch.backends.cuda.matmul.fp32_precision
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        try:
            yield
        finally:
            torch.backends.cuda.matmul.fp32_precision = previous


def number(logit_scale: Tensor) -> Tensor | float:
    """The scale as a number where that costs no waiting: on the CPU, where numbers are also faster than small tensors."""
    return logit_scale.item() if logit_scale.device.type == "cpu" else logit_scale.detach()


def prepare_embeds(*embeds: Tensor) -> tuple[Tensor, ...]:
    """Checks that all embeddings have one shape, and casts them to the precision of the loss."""
    shapes = [tuple(tensor.shape) for tensor in embeds]
    if len(shapes[0]) != 2 or len(set(shapes)) > 1:
        raise ValueError(
            "`image_embeds` and `text_embeds` must be two matrices of one shape (batch, dim), row by row a pair, and those "
            f"of augmented views likewise, got {' and '.join(map(str, shapes))}."
        )
    if len(embeds[0]) < 1:
        raise ValueError("The loss needs at least one image-text pair, got an empty batch.")
    if not all(tensor.is_floating_point() for tensor in embeds):
        raise ValueError(f"Embeddings must be floating point, got {' and '.join(str(t.dtype) for t in embeds)}.")
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in embeds) else torch.float32
    return tuple(tensor.to(dtype) for tensor in embeds)


def prepare_number(name: str, value: Tensor | float, embeds: Tensor) -> Tensor:
    """Checks that `value` is one number, and casts it to a tensor of shape `()` beside `embeds`."""
    value = torch.as_tensor(value, device=embeds.device).to(embeds.dtype)
    if value.numel() != 1:
        raise ValueError(f"`{name}` must be one number, got a tensor of shape {tuple(value.shape)}.")
    return value.reshape(()) if value.dim() else value


def refuse_second_derivatives() -> None:
    """Call this in a backward pass, where autograd records only if second derivatives are wanted."""
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "The loss has first derivatives only: call backward without `create_graph=True`, or compute a loss from the "
            "dense similarities where second derivatives are needed."
        )


def needs_gradients(*tensors: Tensor) -> tuple[bool, ...]:
    """Which gradients a loss computes along with its value, since a backward pass may ask for them."""
    return tuple(torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors)


def find_softmaxes(
    logits_of: Callable[[slice], Tensor],
    blocks: list[slice],
    shape: tuple[int, int],
    scale: Tensor | float,
    process_group: dist.ProcessGroup | None,
) -> tuple[OneExponential | TwoExponentials, Tensor]:
    """
    The softmaxes over the rows and columns of the logits of all processes, and the last block as they have prepared it.
    `logits_of` computes the logits of rows of this process, of which `shape` are the numbers of rows and columns.
    """
    first_column = rank(process_group) * shape[0]
    # d loss / d cosines = scale / 2N · (softmax over the row + softmax over the column − 2 on the pair)
    factor = world_size(process_group) / (2 * shape[1]) * scale
    # Whether one exponential will do is known after the fact. Only on the CPU, where the scale is a number, does the question
    # cost nothing.
    for kind in (OneExponential, TwoExponentials) if isinstance(scale, float) else (TwoExponentials,):
        softmaxes = kind(shape[0], first_column, scale, factor)
        for rows in blocks:
            block = softmaxes.add(rows, logits_of(rows))
        if softmaxes.combine(process_group):
            break
    return softmaxes, block


class LossWithGradients(torch.autograd.Function):
    """
    A loss whose gradients at `inputs` were computed along with its value. Those that are not needed are `None`.
    """

    @staticmethod
    def forward(ctx, loss_and_grads: tuple[Tensor, Tensor | None, ...], *inputs: Tensor) -> Tensor:
        loss, *grads = loss_and_grads
        ctx.save_for_backward(*grads)
        return loss

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        refuse_second_derivatives()
        grads = ctx.saved_tensors
        # Only on the CPU does it cost nothing to see that there is nothing to multiply.
        if grad_output.device.type != "cpu" or grad_output.item() != 1:
            grads = (None if grad is None else grad * grad_output for grad in grads)
        return None, *grads


def contrastive_loss(
    image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, process_group: dist.ProcessGroup | None
) -> Tensor:
    """
    Mean of the cross-entropies over the rows and over the columns of the scaled similarities (CyCLIP, section 2; CLIP).

    Where the logits fit into memory, they are computed once, and the loss and its gradients take three products. Beyond,
    a first pass goes through blocks of rows and keeps the sums of every row and every column, and a second one computes
    each block again for the gradients. This is exact, in O(block · N) memory.

    With a process group, every process holds n rows and computes their logits with the captions of all processes.
    """
    needs_image_grad, needs_text_grad, needs_scale_grad = needs = needs_gradients(
        image_embeds, text_embeds, logit_scale
    )
    with torch.no_grad(), full_precision(image_embeds.device.type):
        all_text_embeds = gather_rows(text_embeds, process_group)
        shape = len(image_embeds), len(all_text_embeds)
        blocks = row_blocks(*shape, image_embeds.element_size())
        scale = number(logit_scale)

        def logits_of(rows: slice) -> Tensor:
            return (image_embeds[rows] @ all_text_embeds.T).mul_(scale)

        softmaxes, block = find_softmaxes(logits_of, blocks, shape, scale, process_group)
        loss = all_reduce_sum(softmaxes.gaps.sum(), process_group) / (2 * shape[1])
        if not any(needs):
            return loss

        grad_image = grad_text = grad_scale = None
        if needs_image_grad or needs_scale_grad:
            grad_image = torch.empty_like(image_embeds)
        if needs_text_grad:
            grad_text = torch.empty_like(all_text_embeds)
        for rows in blocks:
            if len(blocks) > 1:
                block = softmaxes.again(rows, logits_of(rows))
            grad_cosines = softmaxes.grad_logits(rows, block)
            if grad_image is not None:
                torch.mm(grad_cosines, all_text_embeds, out=grad_image[rows])
            if grad_text is not None:
                grad_text.addmm_(grad_cosines.T, image_embeds[rows], beta=float(rows.start > 0))
        if needs_scale_grad:
            # The scale multiplies the image embeddings, so its gradient follows from theirs.
            grad_scale = torch.linalg.vecdot(grad_image, image_embeds).sum() / scale
        grad_image = grad_image if needs_image_grad else None
        grad_text = reduce_scatter_rows(grad_text, process_group) if needs_text_grad else None
    return LossWithGradients.apply((loss, grad_image, grad_text, grad_scale), image_embeds, text_embeds, logit_scale)


def view_loss(
    embeds: Tensor, augmented_embeds: Tensor, logit_scale: Tensor, process_group: dist.ProcessGroup | None
) -> Tensor:
    """
    Cross-entropy of finding each sample's augmented view: over the rows of the scaled similarities only, that is, from
    the original view to the augmented one, as in the official code. No row needs the sums of another row, so one pass
    over blocks of rows gives both the loss and its gradients.

    With a process group, every process holds n rows of both, and looks for its views among those of all processes.
    """
    needs = needs_gradients(embeds, augmented_embeds, logit_scale)
    with torch.no_grad(), full_precision(embeds.device.type):
        all_augmented = gather_rows(augmented_embeds, process_group)
        num_rows, num_columns = len(embeds), len(all_augmented)
        first_column = rank(process_group) * num_rows
        total = embeds.new_zeros(())
        grad_embeds, grad_augmented = torch.empty_like(embeds), torch.zeros_like(all_augmented)
        scaled = embeds * logit_scale
        for rows in row_blocks(num_rows, num_columns, embeds.element_size()):
            log_softmax = torch.log_softmax(scaled[rows] @ all_augmented.T, dim=1)
            total -= log_softmax.diagonal(first_column + rows.start).sum()
            if any(needs):
                # d loss / d logits = 1 / N · (softmax over the row - 1 on the pair)
                grad_logits = log_softmax.exp_()
                grad_logits.diagonal(first_column + rows.start).sub_(1)
                torch.mm(grad_logits, all_augmented, out=grad_embeds[rows])
                grad_augmented.addmm_(grad_logits.T, scaled[rows])
        loss = all_reduce_sum(total, process_group) / num_columns
        if not any(needs):
            return loss
        factor = world_size(process_group) / num_columns
        grad_scale = factor * torch.linalg.vecdot(grad_embeds, embeds).sum()
        grad_embeds.mul_(factor * logit_scale)
        grad_augmented = reduce_scatter_rows(grad_augmented.mul_(factor), process_group)
    return LossWithGradients.apply(
        (loss, grad_embeds, grad_augmented, grad_scale), embeds, augmented_embeds, logit_scale
    )


@torch.no_grad()
def in_batch_recall(
    image_embeds: Tensor, text_embeds: Tensor, process_group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """
    Image-to-text and text-to-image recall@1 of unit-norm embeddings: the share of images whose own caption is the most
    similar one in the batch, and the share of captions likewise. A pair that ties with others counts as the chance of
    picking it among them, so that collapsed embeddings score 1 / N and not 1. Processes of a group, which all have the
    embeddings of all of them, share the work.
    """
    num_own = len(image_embeds) // world_size(process_group)
    own = slice(rank(process_group) * num_own, (rank(process_group) + 1) * num_own)
    pairs = (image_embeds, text_embeds), (text_embeds, image_embeds)
    hits = torch.stack([_hits(queries[own], candidates, own.start) for queries, candidates in pairs])
    image_to_text, text_to_image = all_reduce_sum(hits, process_group) / len(image_embeds)
    return image_to_text, text_to_image


def _hits(queries: Tensor, candidates: Tensor, first_candidate: int) -> Tensor:
    hits = queries.new_zeros(())
    with full_precision(queries.device.type):
        for rows in row_blocks(len(queries), len(candidates), queries.element_size()):
            similarities = queries[rows] @ candidates.T
            best = similarities.amax(dim=1, keepdim=True)
            found = similarities.diagonal(first_candidate + rows.start) >= best[:, 0]
            hits += (found / (similarities >= best).sum(dim=1)).sum()
    return hits
