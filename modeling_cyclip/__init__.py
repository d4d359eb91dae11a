"""CyCLIP for the Hugging Face ecosystem: model, loss and Trainer."""

from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification

from .configuration_cyclip import CyclicTerms, CyCLIPConfig
from .configuration_cyclip_resnet import CyCLIPResNetConfig, CyCLIPResNetVisionConfig
from .data.data_collator import CyCLIPDataCollator
from .loss import CyCLIPLossOutput, cyclic_regularisers, cyclip_loss
from .modeling_cyclip import CyCLIPModel, CyCLIPOutput
from .modeling_cyclip_resnet import CyCLIPResNetModel, CyCLIPResNetVisionModel
from .sigmoid import sigmoid_loss
from .trainer import CyCLIPTrainer
from .training_args import CyCLIPTrainingArguments


__version__ = "0.1.0"

AutoConfig.register(CyCLIPResNetConfig.model_type, CyCLIPResNetConfig, exist_ok=True)
AutoModel.register(CyCLIPResNetConfig, CyCLIPResNetModel, exist_ok=True)
AutoModelForZeroShotImageClassification.register(CyCLIPResNetConfig, CyCLIPResNetModel, exist_ok=True)

__all__ = [
    "CyCLIPConfig",
    "CyCLIPDataCollator",
    "CyCLIPLossOutput",
    "CyCLIPModel",
    "CyCLIPOutput",
    "CyCLIPResNetConfig",
    "CyCLIPResNetModel",
    "CyCLIPResNetVisionConfig",
    "CyCLIPResNetVisionModel",
    "CyCLIPTrainer",
    "CyCLIPTrainingArguments",
    "CyclicTerms",
    "cyclic_regularisers",
    "cyclip_loss",
    "sigmoid_loss",
]
