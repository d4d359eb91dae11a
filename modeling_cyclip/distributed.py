"""Sums and concatenations over processes.

Every process computes the same loss, that of the global batch. The gradient of this loss is the sum of the gradients of
the W processes, but data-parallel wrappers (DDP, FSDP) average them. The contrastive and the cyclic terms therefore
multiply their gradients by W, so that the average is the exact gradient.

Without a process group (`None`) every operation here is the identity.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def world_size(process_group: dist.ProcessGroup | None) -> int:
    return 1 if process_group is None else dist.get_world_size(process_group)


def rank(process_group: dist.ProcessGroup | None) -> int:
    return 0 if process_group is None else dist.get_rank(process_group)


def is_first_process() -> bool:
    """Whether this is the first of the processes that a launcher has started, also before they have a process group."""
    return int(os.environ.get("RANK", 0)) == 0


def training_process_group() -> dist.ProcessGroup | None:
    """The default process group where several processes train together, else `None`."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.group.WORLD
    return None


def all_reduce_sum(tensor: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """The sum of `tensor` over the processes, without gradient."""
    if process_group is None:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total, group=process_group)
    return total


def all_gather_stack(tensor: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """`tensor` of every process, of shape `(world_size, *tensor.shape)`, without gradient."""
    if process_group is None:
        return tensor.detach()[None]
    rows = tensor.detach().contiguous()
    gathered = rows.new_empty(world_size(process_group) * rows.shape[0], *rows.shape[1:])
    # From torch 2.13 on the old name warns.
    gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor
    gather(gathered, rows, group=process_group)
    return gathered.view(-1, *rows.shape)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, process_group):
        ctx.process_group = process_group
        return all_gather_stack(tensor, process_group).flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        n = grad.shape[0] // world_size(ctx.process_group)
        start = rank(ctx.process_group) * n
        return all_reduce_sum(grad, ctx.process_group)[start : start + n], None


def gather_rows(tensor: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """
    The rows of all processes in the order of their ranks, differentiable: the gradient of a row is the sum of the
    gradients that all processes compute for it. All processes must hold equally many rows.
    """
    return tensor if process_group is None else _GatherRows.apply(tensor, process_group)
