"""The one scalar among the parameters: its bounds, and its shape where parameters are sharded."""

import math

import torch
from torch import Tensor, nn
from transformers import TrainerCallback


# exp(4.6052) = 100, the bound of CLIP (Radford et al., 2021, section 2.5).
MAX_LOGIT_SCALE = math.log(100)


class ClampLogitScale(TrainerCallback):
    """Keeps `logit_scale` in [0, ln 100] after every optimizer step, so that the multiplier stays in [1, 100]."""

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        with torch.no_grad():
            model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)


def make_logit_scale_one_dimensional(model: nn.Module) -> None:
    """
    Gives `logit_scale` the shape `(1,)`, without which FSDP cannot shard it. Weights of either shape can be loaded.
    """
    model.logit_scale = nn.Parameter(model.logit_scale.detach().reshape(1), model.logit_scale.requires_grad)
    model.register_load_state_dict_pre_hook(_fit_logit_scale)


def _fit_logit_scale(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    if (name := f"{prefix}logit_scale") in state_dict:
        state_dict[name] = state_dict[name].reshape(module.logit_scale.shape)


def with_scalar_logit_scale(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the scalar of a CLIP checkpoint."""
    return {name: tensor.reshape(()) if name == "logit_scale" else tensor for name, tensor in state_dict.items()}


def fit_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Gives moments their parameter's shape: a checkpoint may come from a run with the other shape of `logit_scale`."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            # The number of steps is a scalar for every parameter.
            if name != "step" and isinstance(value, Tensor) and value.numel() == parameter.numel() == 1:
                state[name] = value.reshape(parameter.shape)
