"""Which parameters the optimizer decays."""

from torch import nn
from transformers.trainer_pt_utils import get_parameter_names


def decay_parameter_names(model: nn.Module) -> list[str]:
    """
    Names of the parameters under weight decay: weights and embeddings, but no norm, no bias and not `logit_scale` (as in
    the official code; transformers' own rule decays `logit_scale`).
    """
    norms = [nn.LayerNorm, nn.modules.batchnorm._NormBase, nn.GroupNorm]
    return get_parameter_names(model, norms, [r"(?:^|\.)bias$", r"logit_scale$"])
