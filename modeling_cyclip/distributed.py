"""Sums and concatenations over processes.

Every process computes the same loss, that of the global batch. The gradient of this loss is the sum of the gradients of
the W processes, but data-parallel wrappers (DDP, FSDP) average them. The contrastive and the cyclic terms therefore
multiply their gradients by W, so that the average is the exact gradient.

Without a process group (`None`) every operation here is the identity.
"""

import os

import torch.distributed as dist
from torch import Tensor


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


def gather_rows(tensor: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """
    The rows of all processes in the order of their ranks, without gradient. All processes must hold equally many rows.
    """
    return tensor.detach() if process_group is None else all_gather_stack(tensor, process_group).flatten(0, 1)


def reduce_scatter_rows(tensor: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """The sum over the processes of a tensor with the rows of all of them; every process gets its own rows of it."""
    if process_group is None:
        return tensor
    rows = tensor.new_empty(tensor.shape[0] // world_size(process_group), *tensor.shape[1:])
    # From torch 2.13 on the old name warns.
    reduce_scatter = (
        dist.reduce_scatter_single if hasattr(dist, "reduce_scatter_single") else dist.reduce_scatter_tensor
    )
    reduce_scatter(rows, tensor.contiguous(), group=process_group)
    return rows
