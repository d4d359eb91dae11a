"""CyCLIP for the Hugging Face ecosystem: model, loss and Trainer."""

from .configuration_cyclip import CyCLIPConfig
from .loss import CyCLIPLossOutput, cyclic_regularisers, cyclip_loss
from .modeling_cyclip import CyCLIPModel, CyCLIPOutput


__version__ = "0.1.0"

__all__ = [
    "CyCLIPConfig",
    "CyCLIPLossOutput",
    "CyCLIPModel",
    "CyCLIPOutput",
    "cyclic_regularisers",
    "cyclip_loss",
]
