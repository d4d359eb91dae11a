"""What the optimizer needs to know: weight decay, learning rates of the towers, bounds of `logit_scale`."""

import math

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_pt_utils import get_parameter_names

from .dual_encoder import TOWERS


# exp(4.6052) = 100, the bound of CLIP (Radford et al., 2021, section 2.5).
MAX_LOGIT_SCALE = math.log(100)


def decay_parameter_names(model: nn.Module) -> list[str]:
    """
    Names of the parameters with weight decay: weights and embeddings, but not norms, biases, `logit_scale` and `logit_bias`,
    as in the official code. transformers' own rule decays the last two.
    """
    norms = [nn.LayerNorm, nn.modules.batchnorm._NormBase, nn.GroupNorm]
    return get_parameter_names(model, norms, [r"(?:^|[._])bias$", r"logit_scale$"])


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
        module = name.removeprefix("module.").partition(".")[0]
        if vision_rate is not None and module in TOWERS["vision"]:
            own_rates[parameter] = vision_rate
        elif text_rate is not None and module in TOWERS["text"]:
            own_rates[parameter] = text_rate
    groups = {}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            rate = own_rates.get(parameter, group["lr"])
            key = (parameter in own_rates, number, rate)
            groups.setdefault(key, {**group, "params": [], "lr": rate})["params"].append(parameter)
    optimizer.param_groups = [groups[key] for key in sorted(groups)]


class ClampLogitScale(TrainerCallback):
    """
    Keeps `logit_scale` in [0, ln 100] after every optimizer step, so that the multiplier stays in [1, 100]. That is CLIP's
    rule. SigLIP has none, and its released models lie above: open_clip's ViT-SO400M-14-SigLIP-384 at 112.
    """

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        with torch.no_grad():
            model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
