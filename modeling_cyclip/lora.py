"""LoRA (Hu et al., 2021): trains low-rank additions to the attention projections of a checkpoint, and nothing else."""

import logging
import os
import re
from pathlib import Path

from peft import LoraConfig
from peft.functional import get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from .build_model import ModelArguments
from .modeling_cyclip import give_usual_permissions
from .trainer import CyCLIPTrainer


logger = logging.getLogger(__name__)

# Query, key, value and output of every attention layer, in towers by these names.
PROJECTIONS = r"(?:{})_model\.encoder\.layers\.\d+\.self_attn\.(?:q|k|v|out)_proj"
# peft puts this before the names in an adapter's file.
PREFIX = "base_model.model."


def add_lora(model: PreTrainedModel, args: ModelArguments) -> None:
    """
    Puts adapters beside the query, key, value and output projections of every attention layer. Only the adapters train.
    The model keeps its class, and its outputs stay the same until then. Raises a `ValueError` for a tower without
    attention layers (CLIP's ResNet).
    """
    for tower in args.lora_towers:
        projections = re.compile(PROJECTIONS.format(tower))
        if not any(projections.fullmatch(name) for name, _ in model.named_modules()):
            raise ValueError(
                f"The {tower} tower has no attention layers that LoRA knows, which are those of CLIP, SigLIP and MetaCLIP 2. Leave "
                "it out of --lora_towers."
            )
    towers = "|".join(args.lora_towers)
    config = LoraConfig(
        r=args.lora_rank,
        lora_alpha=args.lora_rank if args.lora_alpha is None else args.lora_alpha,
        target_modules=PROJECTIONS.format(towers),
        base_model_name_or_path=args.model_name_or_path,
    )
    inject_adapter_in_model(config, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # peft gives adapters the precision of the weights beside them
    names = lora_layers(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info(
        f"LoRA of rank {config.r}: {trained:,} of {model.num_parameters():,} parameters train, beside {len(names)} "
        f"attention projections ({' and '.join(args.lora_towers)} tower). All others stay as they are, the projections "
        "to the joint space and logit_scale among them."
    )


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The layers with adapters, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


class LoraTrainer(CyCLIPTrainer):
    """A [`CyCLIPTrainer`] that saves and resumes only the adapters, in peft's format."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled:
            raise ValueError(
                "--lora_rank does not go with FSDP: adapters are small enough for every GPU to hold them."
            )

    def merge(self) -> None:
        """Adds the adapters to the weights. From then on the model is, and saves, a checkpoint without adapters."""
        for name, layer in lora_layers(self.model).items():
            layer.merge(safe_merge=True)
            self.model.set_submodule(name, layer.get_base_layer())
        del self.model.peft_config

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        output_dir = output_dir or self.args.output_dir
        if not lora_layers(self.model):
            super()._save(output_dir, state_dict)
            if self.args.should_save:
                # transformers adds adapters that lie beside a model to it, so they would count twice.
                for name in (SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME):
                    Path(output_dir, name).unlink(missing_ok=True)
        elif self.args.should_save:
            os.makedirs(output_dir, exist_ok=True)
            adapters = get_peft_model_state_dict(self.model, state_dict, save_embedding_layers=False)
            save_file(
                {PREFIX + name: tensor.contiguous() for name, tensor in adapters.items()},
                Path(output_dir, SAFETENSORS_WEIGHTS_NAME),
                metadata={"format": "pt"},
            )
            give_usual_permissions(Path(output_dir, SAFETENSORS_WEIGHTS_NAME))
            self.model.peft_config["default"].save_pretrained(output_dir)
            self.processing_class.save_pretrained(output_dir)
            self._record(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        saved, own = LoraConfig.from_pretrained(resume_from_checkpoint), self.model.peft_config["default"]
        for name in ("r", "lora_alpha", "target_modules"):
            if getattr(saved, name) != getattr(own, name):
                raise ValueError(
                    f"{resume_from_checkpoint} has other adapters ({name} {getattr(saved, name)}, here "
                    f"{getattr(own, name)}). Resume with the --lora_* arguments of the run that it is from."
                )
        adapters = load_file(Path(resume_from_checkpoint, SAFETENSORS_WEIGHTS_NAME))
        set_peft_model_state_dict(self.model, {name.removeprefix(PREFIX): value for name, value in adapters.items()})

    def _load_best_weights(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)
