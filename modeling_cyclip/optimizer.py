"""What the optimizer may touch: which parameters decay, and where `logit_scale` may go."""

import math

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_pt_utils import get_parameter_names


# exp(4.6052) = 100, the bound of CLIP (Radford et al., 2021, section 2.5).
MAX_LOGIT_SCALE = math.log(100)


def decay_parameter_names(model: nn.Module) -> list[str]:
    """
    Names of the parameters under weight decay: weights and embeddings, but no norm, no bias and not `logit_scale` (as in
    the official code; transformers' own rule decays `logit_scale`).
    """
    norms = [nn.LayerNorm, nn.modules.batchnorm._NormBase, nn.GroupNorm]
    return get_parameter_names(model, norms, [r"(?:^|\.)bias$", r"logit_scale$"])


class ClampLogitScale(TrainerCallback):
    """Keeps `logit_scale` in [0, ln 100] after every optimizer step, so that the multiplier stays in [1, 100]."""

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        with torch.no_grad():
            model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
