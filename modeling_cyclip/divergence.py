"""Notices a training that is no longer finite, so that it ends before its weights are saved over good ones."""

import itertools

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class DivergenceError(RuntimeError):
    """The loss or the weights of a training are not finite."""


class FirstBadStep:
    """The first step whose loss is not finite. It is kept on the device, so that only reading it waits for the device."""

    def __init__(self):
        self._step: Tensor | None = None

    def add(self, loss: Tensor, step: int) -> None:
        here = torch.where(loss.detach().isfinite(), torch.inf, float(step))
        self._step = here if self._step is None else torch.minimum(self._step, here)

    def read(self) -> int | None:
        step = torch.inf if self._step is None else self._step.item()
        return None if step == torch.inf else int(step)


def first_not_finite(model: nn.Module) -> str | None:
    """
    The name of the first parameter or buffer with a value that is not finite, or `None`. Of a sharded one, this process
    sees its shard.
    """
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        values = tensor.detach()
        if isinstance(values, DTensor):
            values = values.to_local()
        if not values.isfinite().all():
            return name
    return None
