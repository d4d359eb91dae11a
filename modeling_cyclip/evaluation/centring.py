"""The modality gap closed for free: each modality's mean removed (Liang et al., 2022, section 4.2)."""

import torch.nn.functional as F
from torch import Tensor


# What the names of protocols end with that ran on centred embeddings.
CENTRED = ", centred"


def center(embeds: Tensor, mean: Tensor) -> Tensor:
    r"""
    Embeddings with the mean of their modality removed, unit-norm again. What a training is said to gain by closing the
    gap must exceed what this gives without training.

    Args:
        embeds (`torch.Tensor` of shape `(..., dim)`):
            Unit-norm embeddings.
        mean (`torch.Tensor` of shape `(dim,)`):
            Mean of the modality's embeddings.

    Returns:
        `torch.Tensor` of shape `(..., dim)`.
    """
    return F.normalize(embeds - mean, dim=-1)
