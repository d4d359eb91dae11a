"""The contrastive loss of pairs, that of two views, and in-batch recall. None of them ever holds the N×N logits."""

from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from .distributed import all_gather_stack, all_reduce_sum, rank, world_size


# Rows of logits in memory at once. 256 rows are as fast as the whole matrix on CPU and enough to keep a GPU busy.
BLOCK_SIZE = 256


@contextmanager
def full_precision(device_type: str):
    """Computes products of float32 matrices in float32: neither autocast nor TF32 applies."""
    with torch.autocast(device_type, enabled=False):
        if device_type != "cuda":
            yield
            return
        previous = torch.backends.cuda.matmul.fp32_precision
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        try:
            yield
        finally:
            torch.backends.cuda.matmul.fp32_precision = previous


def refuse_second_derivatives() -> None:
    """Call this in a backward pass, where autograd records only if second derivatives are wanted."""
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "The loss has first derivatives only: call backward without `create_graph=True`, or compute a loss from the "
            "dense similarities where second derivatives are needed."
        )


class BlockwiseContrastiveLoss(torch.autograd.Function):
    """
    Mean of the cross-entropies over the rows and over the columns of the scaled similarities (CyCLIP, section 2; CLIP).

    The forward pass goes through blocks of rows and keeps only the log-sum-exp of every row and every column. The
    backward pass computes each block again and takes both gradients from it. This is exact, in O(block · N) memory.

    With a process group, `image_embeds` are the n rows of this process, and `text_embeds` are the columns of all
    processes in the order of their ranks. Each process computes its own rows, then the column sums are combined.
    """

    @staticmethod
    def forward(
        ctx, image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, process_group: dist.ProcessGroup | None
    ) -> Tensor:
        num_rows, num_columns = image_embeds.shape[0], text_embeds.shape[0]
        first_column = rank(process_group) * num_rows
        with full_precision(image_embeds.device.type):
            scaled_images = image_embeds * logit_scale
            matched = image_embeds.new_empty(num_rows)
            row_max, row_sum = torch.empty_like(matched), torch.empty_like(matched)
            column_max = image_embeds.new_full((num_columns,), float("-inf"))
            column_sum = image_embeds.new_zeros(num_columns)
            for start in range(0, num_rows, BLOCK_SIZE):
                rows = slice(start, start + BLOCK_SIZE)
                logits = scaled_images[rows] @ text_embeds.T
                matched[rows] = logits.diagonal(first_column + start)
                row_max[rows] = logits.amax(dim=1)
                row_sum[rows] = torch.exp(logits - row_max[rows, None]).sum(dim=1)
                previous_max, column_max = column_max, torch.maximum(column_max, logits.amax(dim=0))
                column_sum *= torch.exp(previous_max - column_max)
                column_sum += logits.sub_(column_max).exp_().sum(dim=0)
            # So far these are the maxima and sums over this process's rows; now they are combined over all rows.
            maxima, sums = all_gather_stack(torch.stack([column_max, column_sum]), process_group).unbind(dim=1)
            column_max = maxima.amax(dim=0)
            column_sum = (sums * torch.exp(maxima - column_max)).sum(dim=0)
            # The pair is subtracted from the maximum before the logarithm of the sum is added. Otherwise the loss of a
            # nearly solved batch would drown in the rounding of the logits.
            own = slice(first_column, first_column + num_rows)
            gaps = (row_max - matched) + row_sum.log() + (column_max[own] - matched) + column_sum[own].log()
            loss = all_reduce_sum(gaps.sum(), process_group) / (2 * num_columns)
            row_lse, column_lse = row_max + row_sum.log(), column_max + column_sum.log()

        ctx.save_for_backward(image_embeds, text_embeds, logit_scale, row_lse, column_lse)
        ctx.first_column = first_column
        ctx.world_size = world_size(process_group)
        return loss

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        refuse_second_derivatives()
        image_embeds, text_embeds, logit_scale, row_lse, column_lse = ctx.saved_tensors
        num_rows, num_columns = image_embeds.shape[0], text_embeds.shape[0]
        needs_image_grad, needs_text_grad, needs_scale_grad, _ = ctx.needs_input_grad
        grad_image = torch.empty_like(image_embeds)
        grad_text = torch.zeros_like(text_embeds) if needs_text_grad else None
        with full_precision(image_embeds.device.type):
            # d loss / d logits = factor · (softmax over the row + softmax over the column - 2 on the pair)
            factor = grad_output * ctx.world_size / (2 * num_columns)
            scaled_images = image_embeds * logit_scale
            for start in range(0, num_rows, BLOCK_SIZE):
                rows = slice(start, start + BLOCK_SIZE)
                logits = scaled_images[rows] @ text_embeds.T
                grad_logits = torch.exp(logits - row_lse[rows, None])
                grad_logits += logits.sub_(column_lse).exp_()
                grad_logits.diagonal(ctx.first_column + start).sub_(2)
                if needs_image_grad or needs_scale_grad:
                    torch.mm(grad_logits, text_embeds, out=grad_image[rows])
                if needs_text_grad:
                    grad_text.addmm_(grad_logits.T, scaled_images[rows])
            # The scale multiplies the image embeddings, so its gradient follows from theirs.
            grad_scale = (grad_image * image_embeds).sum() * factor if needs_scale_grad else None
            grad_image = grad_image.mul_(factor * logit_scale) if needs_image_grad else None
            grad_text = grad_text.mul_(factor) if needs_text_grad else None
        return grad_image, grad_text, grad_scale, None


class BlockwiseViewLoss(torch.autograd.Function):
    """
    Cross-entropy of finding each sample's augmented view: over the rows of the scaled similarities only, that is, from
    the original view to the augmented one, as in the official code. No row needs the sums of another row, so one pass
    over blocks of rows gives both the loss and its gradients. The backward pass only scales these.

    With a process group, `embeds` are the n rows of this process, and `augmented_embeds` the columns of all processes.
    """

    @staticmethod
    def forward(
        ctx, embeds: Tensor, augmented_embeds: Tensor, logit_scale: Tensor, process_group: dist.ProcessGroup | None
    ) -> Tensor:
        num_rows, num_columns = embeds.shape[0], augmented_embeds.shape[0]
        first_column = rank(process_group) * num_rows
        total = embeds.new_zeros(())
        grad_embeds, grad_augmented = torch.empty_like(embeds), torch.zeros_like(augmented_embeds)
        with full_precision(embeds.device.type):
            scaled = embeds * logit_scale
            for start in range(0, num_rows, BLOCK_SIZE):
                rows = slice(start, start + BLOCK_SIZE)
                log_softmax = torch.log_softmax(scaled[rows] @ augmented_embeds.T, dim=1)
                total -= log_softmax.diagonal(first_column + start).sum()
                # d loss / d logits = 1 / N · (softmax over the row - 1 on the pair)
                grad_logits = log_softmax.exp_()
                grad_logits.diagonal(first_column + start).sub_(1)
                torch.mm(grad_logits, augmented_embeds, out=grad_embeds[rows])
                grad_augmented.addmm_(grad_logits.T, scaled[rows])
            grad_scale = (grad_embeds * embeds).sum()
        ctx.save_for_backward(grad_embeds.mul_(logit_scale), grad_augmented, grad_scale)
        ctx.factor = world_size(process_group) / num_columns
        return all_reduce_sum(total, process_group) / num_columns

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        refuse_second_derivatives()
        return *(grad * (ctx.factor * grad_output) for grad in ctx.saved_tensors), None


@torch.no_grad()
def in_batch_recall(image_embeds: Tensor, text_embeds: Tensor) -> tuple[Tensor, Tensor]:
    """
    Image-to-text and text-to-image recall@1 of unit-norm embeddings: the share of images whose own caption is the most
    similar one in the batch, and the share of captions likewise. A pair that ties with others counts as the chance of
    picking it among them, so that collapsed embeddings score 1 / N and not 1.
    """
    return _row_recall(image_embeds, text_embeds), _row_recall(text_embeds, image_embeds)


def _row_recall(queries: Tensor, candidates: Tensor) -> Tensor:
    hits = queries.new_zeros(())
    with full_precision(queries.device.type):
        for start in range(0, len(queries), BLOCK_SIZE):
            similarities = queries[start : start + BLOCK_SIZE] @ candidates.T
            best = similarities.amax(dim=1, keepdim=True)
            found = similarities.diagonal(start) >= best[:, 0]
            hits += (found / (similarities >= best).sum(dim=1)).sum()
    return hits / len(queries)
