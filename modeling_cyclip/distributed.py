"""Sums and concatenations over processes through which gradients flow.

Every process computes the one loss of the global batch. Data-parallel wrappers (DDP, FSDP) then average the gradients of
the W processes, where the gradient of that one loss is their sum: the two operations here and the contrastive term
multiply by W, once on every path from the loss to an embedding, so that the average comes out as the exact gradient.

Without a process group (`None`) each is the identity.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def world_size(process_group: dist.ProcessGroup | None) -> int:
    return 1 if process_group is None else dist.get_world_size(process_group)


def rank(process_group: dist.ProcessGroup | None) -> int:
    return 0 if process_group is None else dist.get_rank(process_group)


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
    gathered = tensor.new_empty(world_size(process_group), *tensor.shape)
    dist.all_gather_into_tensor(gathered, tensor.detach().contiguous(), group=process_group)
    return gathered


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, process_group):
        ctx.world_size = world_size(process_group)
        return all_reduce_sum(tensor, process_group)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        # Each process holds the same function of the sum, hence the same gradient: nothing to exchange.
        return grad * ctx.world_size, None


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


def sum_over_processes(tensor: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """The sum of `tensor` over the processes, differentiable, to be put into a loss that every process computes."""
    return tensor if process_group is None else _SumOverProcesses.apply(tensor, process_group)


def gather_rows(tensor: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """
    The rows of every process, in the order of their ranks, differentiable: a row's gradient is the sum of what every
    process computes for it. All processes must hold equally many rows.
    """
    return tensor if process_group is None else _GatherRows.apply(tensor, process_group)
