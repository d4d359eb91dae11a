"""What the optimizer needs to know: weight decay, learning rates of the towers, bounds and shape of `logit_scale`."""

import math

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_pt_utils import get_parameter_names


# exp(4.6052) = 100, the bound of CLIP (Radford et al., 2021, section 2.5).
MAX_LOGIT_SCALE = math.log(100)


def decay_parameter_names(model: nn.Module) -> list[str]:
    """
    Names of the parameters with weight decay: weights and embeddings, but not norms, biases and `logit_scale`, as in the
    official code. transformers' own rule decays `logit_scale`, too.
    """
    norms = [nn.LayerNorm, nn.modules.batchnorm._NormBase, nn.GroupNorm]
    return get_parameter_names(model, norms, [r"(?:^|\.)bias$", r"logit_scale$"])


def set_tower_learning_rates(
    optimizer: torch.optim.Optimizer, model: nn.Module, vision_rate: float | None, text_rate: float | None
) -> None:
    """
    Gives a tower and its projection their own peak learning rate, unless it is `None`. The optimizer must not have a
    schedule yet. The new groups come after those with the common rate, since the rate of the first group is logged.
    """
    if vision_rate is None and text_rate is None:
        return
    own_rates = {}
    for name, parameter in model.named_parameters():
        name = name.removeprefix("module.")
        if vision_rate is not None and name.startswith(("vision_model.", "visual_projection.")):
            own_rates[parameter] = vision_rate
        elif text_rate is not None and name.startswith(("text_model.", "text_projection.")):
            own_rates[parameter] = text_rate
    groups = {}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            rate = own_rates.get(parameter, group["lr"])
            key = (parameter in own_rates, number, rate)
            groups.setdefault(key, {**group, "params": [], "lr": rate})["params"].append(parameter)
    optimizer.param_groups = [groups[key] for key in sorted(groups)]


class ClampLogitScale(TrainerCallback):
    """Keeps `logit_scale` in [0, ln 100] after every optimizer step, so that the multiplier stays in [1, 100]."""

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        with torch.no_grad():
            model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)


def make_logit_scale_one_dimensional(model: nn.Module) -> None:
    """Gives `logit_scale` the shape `(1,)`, since FSDP cannot shard a scalar. Weights of both shapes can be loaded."""
    model.logit_scale = nn.Parameter(model.logit_scale.detach().reshape(1), model.logit_scale.requires_grad)
    model.register_load_state_dict_pre_hook(_fit_logit_scale)


def _fit_logit_scale(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    if (name := f"{prefix}logit_scale") in state_dict:
        state_dict[name] = state_dict[name].reshape(module.logit_scale.shape)


def with_scalar_logit_scale(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with `logit_scale` as a scalar, as in a CLIP checkpoint."""
    return {name: tensor.reshape(()) if name == "logit_scale" else tensor for name, tensor in state_dict.items()}


def fit_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Gives moments their parameter's shape. A checkpoint may come from a run with the other shape of `logit_scale`."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            # The number of steps is a scalar for every parameter.
            if name != "step" and isinstance(value, Tensor) and value.numel() == parameter.numel() == 1:
                state[name] = value.reshape(parameter.shape)
