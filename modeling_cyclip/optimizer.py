"""Which parameters the optimizer decays, and at which rate it trains each tower."""

import torch
from torch import nn
from transformers.trainer_pt_utils import get_parameter_names


def decay_parameter_names(model: nn.Module) -> list[str]:
    """
    Names of the parameters under weight decay: weights and embeddings, but no norm, no bias and not `logit_scale` (as in
    the official code; transformers' own rule decays `logit_scale`).
    """
    norms = [nn.LayerNorm, nn.modules.batchnorm._NormBase, nn.GroupNorm]
    return get_parameter_names(model, norms, [r"(?:^|\.)bias$", r"logit_scale$"])


def set_tower_learning_rates(
    optimizer: torch.optim.Optimizer, model: nn.Module, vision_rate: float | None, text_rate: float | None
) -> None:
    r"""
    Gives a tower and its projection a learning rate of their own, in groups behind those at the common rate: the first
    group's rate is the one that is logged.

    Args:
        optimizer (`torch.optim.Optimizer`):
            Fresh, without a schedule.
        model (`nn.Module`):
            The [`CyCLIPModel`], wrapped or not.
        vision_rate (`float`, *optional*):
            Peak learning rate of the vision tower. `None` leaves it at the common rate.
        text_rate (`float`, *optional*):
            Peak learning rate of the text tower, likewise.
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
            rate = own_rates.get(parameter)
            changes = {} if rate is None else {"lr": rate}
            key = (rate is not None, number, rate or 0.0)
            groups.setdefault(key, {**group, "params": [], **changes})["params"].append(parameter)
    optimizer.param_groups = [groups[key] for key in sorted(groups)]
