"""Builds a model and its processor, from a checkpoint, of two towers or from scratch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.hf_argparser import HfArg
from transformers.utils import is_peft_available, is_torchvision_available

from .configuration_cyclip import CyclicTerms, CyCLIPConfig, check_cyclic_terms
from .configuration_cyclip_resnet import CyCLIPResNetConfig
from .data.data_collator import check_image_processor
from .data.tokenizer import check_tokenizer, is_empty, positions_of, train_tokenizer
from .dual_encoder import TOWERS, open_dual_encoder, open_processor
from .modeling_cyclip import CyCLIPModel
from .modeling_cyclip_resnet import CyCLIPResNetModel
from .towers import pair_towers


SAVE_DTYPES = ("float32", "float16", "bfloat16", "auto")


@dataclass
class ModelArguments:
    """Which model is trained: a checkpoint, two towers, or from scratch a config.json or one of the named sizes."""

    model_name_or_path: str | None = HfArg(
        default=None,
        help="Checkpoint to start from, a folder or a Hub id: a CLIP, or another dual encoder of transformers such as SigLIP.",
    )
    vision_model: str | None = HfArg(
        default=None,
        help="Pretrained vision tower, a folder or a Hub id, to pair with --text_model: ViT, DINOv2, Swin, or one of timm.",
    )
    text_model: str | None = HfArg(
        default=None,
        help="Pretrained text tower to pair with --vision_model: BERT, XLM-R or others with a pooled output.",
    )
    config_name: str | None = HfArg(default=None, help="config.json (file, folder or Hub id) to train from scratch.")
    model_size: str | None = HfArg(
        default=None,
        help="Named size to train from scratch: pico, nano, tiny, small, base-32, base-16, large-14 or rn50.",
    )
    image_size: int | None = HfArg(default=None, help="Side of an image in pixels. Default: that of --model_size.")
    patch_size: int | None = HfArg(default=None, help="Side of a patch in pixels. Default: that of --model_size.")
    tokenizer_name: str | None = HfArg(
        default=None, help="Tokenizer, folder or Hub id. Default: the checkpoint's, or one trained on the captions."
    )
    vocab_size: int = HfArg(default=49408, help="Size limit of a tokenizer trained on the captions, at least 514.")
    inmodal_cyclic_weight: float | None = HfArg(
        default=None, help="Weight of the in-modal term, lambda 1 (default: a CLIP checkpoint's, or 0.25)."
    )
    crossmodal_cyclic_weight: float | None = HfArg(
        default=None, help="Weight of the cross-modal term, lambda 2 (default: a CLIP checkpoint's, or 0.25)."
    )
    cyclic_reference_batch_size: int | None = HfArg(
        default=None,
        help="Batch size R that both weights were chosen for: multiplies them by R / batch (default: off).",
    )
    cyclic_max_gradient_share: float | None = HfArg(
        default=None,
        help="Lowers both weights at every step at which the terms' gradient would be longer than this many times the "
        "contrastive loss's (default: a CLIP checkpoint's, or 1; inf: no bound, as in the paper).",
    )
    freeze_vision: bool = HfArg(
        default=False,
        help="Keep the vision tower and its projection as they are; a projection new to the tower trains.",
    )
    freeze_text: bool = HfArg(default=False, help="Keep the text tower and its projection as they are, likewise.")
    attn_implementation: str | None = HfArg(
        default=None, help="Attention by eager, sdpa or flash_attention_2 (default: transformers' choice, sdpa)."
    )
    lora_rank: int | None = HfArg(default=None, help="Train LoRA adapters of this rank, not the checkpoint's weights.")
    lora_alpha: float | None = HfArg(default=None, help="Adapters are scaled by alpha / rank (default: the rank).")
    lora_towers: list[str] | None = HfArg(default=None, help="Towers with adapters: vision, text (default: both).")
    merge_lora: bool = HfArg(default=False, help="Save a checkpoint with the adapters merged in, not them alone.")
    save_dtype: str = HfArg(
        default="float32",
        help="Precision of the finished model: float32, float16, bfloat16, or auto for that of the checkpoint opened. "
        "Weights train, and checkpoints to go on from are saved, in float32.",
    )
    license: str | None = HfArg(default=None, help="Licence of the weights for the model card, such as apache-2.0.")

    def __post_init__(self):
        check_cyclic_terms(
            self.inmodal_cyclic_weight or 0,
            self.crossmodal_cyclic_weight or 0,
            self.cyclic_reference_batch_size,
            None if self.cyclic_max_gradient_share == math.inf else self.cyclic_max_gradient_share,
        )
        if (self.vision_model is None) != (self.text_model is None):
            given, lacking = ("vision", "text") if self.text_model is None else ("text", "vision")
            raise ValueError(
                f"--{given}_model is one of two towers: give the other as --{lacking}_model. A whole model is opened by "
                "--model_name_or_path."
            )
        sources = ("model_name_or_path", "vision_model", "config_name", "model_size")
        given = [name for name in sources if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "Say which model to train by exactly one of --model_name_or_path (go on from a checkpoint), --vision_model with "
                "--text_model (two towers), --config_name or --model_size (from scratch); got "
                f"{', '.join('--' + name for name in given) or 'none of them'}."
            )
        if self.freeze_vision and self.freeze_text:
            raise ValueError("--freeze_vision and --freeze_text together leave nothing to train.")
        if self.model_size is None and (self.image_size or self.patch_size):
            raise ValueError(
                "--image_size and --patch_size belong to --model_size; a checkpoint or config has its own."
            )
        if self.save_dtype not in SAVE_DTYPES:
            raise ValueError(f"--save_dtype is one of {', '.join(SAVE_DTYPES)}, got {self.save_dtype}.")
        if self.save_dtype == "auto" and self.model_name_or_path is None:
            raise ValueError("--save_dtype auto is the precision of a checkpoint: give it with --model_name_or_path.")
        if self.save_dtype != "float32" and self.saves_adapter:
            raise ValueError("--save_dtype is for a whole checkpoint: with --lora_rank it needs --merge_lora.")
        if self.lora_rank is not None:
            self._check_lora()
        elif self.lora_alpha is not None or self.lora_towers is not None or self.merge_lora:
            raise ValueError("--lora_alpha, --lora_towers and --merge_lora go with --lora_rank.")

    def cyclic_terms(self) -> CyclicTerms:
        """The cyclic terms of a model without a configuration of ours."""
        given = {field.name: getattr(self, field.name) for field in fields(CyclicTerms)}
        given = {name: value for name, value in given.items() if value is not None}
        if self.cyclic_max_gradient_share == math.inf:
            given["cyclic_max_gradient_share"] = None
        return CyclicTerms(**given)

    @property
    def saves_adapter(self) -> bool:
        """Whether the output folder gets an adapter instead of a checkpoint."""
        return self.lora_rank is not None and not self.merge_lora

    @property
    def frozen(self) -> tuple[str, ...]:
        """The towers that stay as they are."""
        return tuple(tower for tower in TOWERS if getattr(self, f"freeze_{tower}"))

    def _check_lora(self) -> None:
        if self.lora_rank < 1:
            raise ValueError(f"--lora_rank must be at least 1, got {self.lora_rank}.")
        if self.model_name_or_path is None:
            raise ValueError("--lora_rank tunes a checkpoint: give it with --model_name_or_path.")
        if self.freeze_vision or self.freeze_text:
            raise ValueError("With --lora_rank, --lora_towers says which towers train: leave out --freeze_*.")
        if not is_peft_available():
            raise ValueError('--lora_rank needs peft: pip install "cyclip[lora]"')
        self.lora_towers = self.lora_towers or ["vision", "text"]
        if wrong := set(self.lora_towers) - {"vision", "text"}:
            raise ValueError(f"--lora_towers takes vision and text, got {', '.join(sorted(wrong))}.")
        self.freeze_vision, self.freeze_text = (tower not in self.lora_towers for tower in ("vision", "text"))


def _tower(width: int, layers: int, dim: int, **values: int) -> dict[str, int]:
    # Heads are 64 wide as in CLIP, or 32 where a tower would have fewer than four of them.
    heads = width // (64 if width >= 256 else 32)
    tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    return {**tower, "num_attention_heads": heads, "projection_dim": dim, **values}


# base and large are OpenAI's ViTs (Radford et al., 2021, table 20). tiny and small are the vision towers of Touvron et al.
# (2021), with text towers of the same width. pico and nano train within minutes on a CPU.
MODEL_SIZES = {
    name: {
        "projection_dim": dim,
        "vision_config": _tower(vision_width, vision_layers, dim, patch_size=patch_size, image_size=image_size),
        "text_config": _tower(text_width, text_layers, dim, max_position_embeddings=text_length),
    }
    for name, vision_width, vision_layers, patch_size, image_size, text_width, text_layers, text_length, dim in (
        ("pico", 96, 3, 8, 32, 96, 2, 24, 96),
        ("nano", 128, 4, 8, 64, 128, 2, 77, 128),
        ("tiny", 192, 12, 16, 224, 192, 6, 77, 256),
        ("small", 384, 12, 16, 224, 384, 12, 77, 384),
        ("base-32", 768, 12, 32, 224, 512, 12, 77, 512),
        ("base-16", 768, 12, 16, 224, 512, 12, 77, 512),
        ("large-14", 1024, 24, 14, 224, 768, 12, 77, 768),
    )
}

# The paper's model: CLIP's ResNet-50, which is the default of CyCLIPResNetConfig.
RESNET_SIZE = "rn50"


def build_model_and_processor(
    args: ModelArguments, captions: Iterable[str], resume_from: str | None = None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """
    The model, in float32, and its processor. The captions are read only if a tokenizer is trained. The run that goes on
    from the checkpoint `resume_from` keeps its tokenizer, since other captions would train another one. `args.save_dtype`
    becomes that of the checkpoint if it is `auto`. Raises a `ValueError` for a size or an attention that does not exist,
    a checkpoint that is no dual encoder or lacks weights, a tokenizer or an image processor that does not fit the model, an
    adapter instead of a checkpoint, or a tower without the layers that LoRA needs.
    """
    tokenizer = None if resume_from is None else AutoTokenizer.from_pretrained(resume_from)
    model, processor = _build(args, captions, tokenizer)
    if args.attn_implementation is not None:
        model.set_attn_implementation(args.attn_implementation)
    if args.lora_rank is not None:
        from .lora import add_lora

        add_lora(model, args)
    for tower in args.frozen:
        # Between two towers, the projections are new: a tower stays as it is, and its projection learns.
        names = TOWERS[tower] if args.vision_model is None else TOWERS[tower][:1]
        _freeze(*(module for name, module in model.named_children() if name in names))
    return model, processor


def _freeze(*modules: nn.Module) -> None:
    for module in modules:
        module.requires_grad_(False)
        module.register_forward_pre_hook(_into_evaluation_mode)


def _into_evaluation_mode(module: nn.Module, _) -> None:
    # The Trainer puts the whole model into training mode, where batch norms move and dropout is active.
    module.eval()


def _build(
    args: ModelArguments, captions: Iterable[str], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    if tokenizer is None and args.tokenizer_name is not None:
        tokenizer = _open_tokenizer(args.tokenizer_name)
    weights = {
        name: getattr(args, name)
        for name in ("inmodal_cyclic_weight", "crossmodal_cyclic_weight", "cyclic_reference_batch_size")
        if getattr(args, name) is not None
    }
    if args.model_name_or_path is not None or args.vision_model is not None:
        if args.vision_model is not None:
            model, processor = pair_towers(args.vision_model, args.text_model, args.frozen, tokenizer)
        else:
            model, processor = _open_checkpoint(args, weights)
        if tokenizer is not None:
            processor.tokenizer = tokenizer
        elif is_empty(processor.tokenizer):
            raise ValueError(
                f"{args.model_name_or_path or args.text_model} has no tokenizer: save the one that its weights were trained with "
                "there, or give it as --tokenizer_name."
            )
        check_tokenizer(processor.tokenizer, model.config)
        _bound(processor.tokenizer, model.config)
        if isinstance(model, CyCLIPModel):
            check_image_processor(processor.image_processor, model.config)
        return model, processor

    config = _scratch_config(args, weights)
    _bound_gradient(config, args.cyclic_max_gradient_share)
    text_config = config.text_config
    if tokenizer is None:
        tokenizer = train_tokenizer(captions, args.vocab_size, text_config.max_position_embeddings)
    if args.model_size is not None or args.tokenizer_name is None:
        text_config.vocab_size = len(tokenizer)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(text_config, name, getattr(tokenizer, name))
    check_tokenizer(tokenizer, config)
    _bound(tokenizer, config)
    image_size = config.vision_config.image_size
    image_processor = _image_processor_class()(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    model_class = CyCLIPResNetModel if isinstance(config, CyCLIPResNetConfig) else CyCLIPModel
    # A saved config.json has a precision, which the towers would take.
    return model_class._from_config(config, dtype=torch.float32), CLIPProcessor(image_processor, tokenizer)


def _open_checkpoint(args: ModelArguments, weights: dict) -> tuple[PreTrainedModel, ProcessorMixin]:
    name = args.model_name_or_path
    try:
        if args.save_dtype == "auto":
            args.save_dtype = str(open_dual_encoder(name, "auto").dtype).removeprefix("torch.")
        # Frozen towers too: half precision would save little beside the activations, and LoRA merges into them.
        model = open_dual_encoder(name, torch.float32, **weights)
        is_clip = isinstance(model, CyCLIPModel)
        processor = CLIPProcessor.from_pretrained(name) if is_clip else open_processor(name)
    except OSError as error:
        kind = "" if Path(name).is_dir() else ", which is no folder here,"
        raise ValueError(f"{name}{kind} cannot be opened as a checkpoint: {error}") from error
    if is_clip:
        _bound_gradient(model.config, args.cyclic_max_gradient_share)
    if model._hf_peft_config_loaded:
        raise ValueError(
            f"{name} is an adapter: train on from a checkpoint that it is merged into (--merge_lora), or go on with its own run "
            "by --resume_from_checkpoint."
        )
    return model, processor


def _open_tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"--tokenizer_name {name} cannot be opened: {error}") from error
    if is_empty(tokenizer):
        raise ValueError(f"--tokenizer_name {name} has no vocabulary.")
    return tokenizer


def _bound_gradient(config: CyCLIPConfig | CyCLIPResNetConfig, share: float | None) -> None:
    if share is not None:
        config.cyclic_max_gradient_share = None if share == math.inf else share
    elif config.cyclic_max_gradient_share is None:
        config.cyclic_max_gradient_share = 1.0


def _bound(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Whoever opens the tokenizer beside the trained model shall cut texts to what the model reads."""
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions_of(config))


def _image_processor_class() -> type:
    """What `CLIPImageProcessor` is here. Without torchvision transformers logs a line at the import of that name."""
    return transformers.CLIPImageProcessor if is_torchvision_available() else transformers.CLIPImageProcessorPil


def _scratch_config(args: ModelArguments, weights: dict) -> CyCLIPConfig:
    if args.config_name is not None:
        try:
            model_type = PreTrainedConfig.get_config_dict(args.config_name)[0].get("model_type")
        except OSError as error:
            raise ValueError(f"--config_name {args.config_name} cannot be opened: {error}") from error
        config_classes = {config_class.model_type: config_class for config_class in (CyCLIPConfig, CyCLIPResNetConfig)}
        if model_type not in config_classes:
            raise ValueError(
                f"--config_name {args.config_name} is the configuration of a model of type {model_type}, not of a CLIP."
            )
        return config_classes[model_type].from_pretrained(args.config_name, **weights)
    if args.model_size == RESNET_SIZE:
        if args.patch_size is not None:
            raise ValueError(f"--patch_size goes with the ViTs: {RESNET_SIZE} has no patches.")
        return CyCLIPResNetConfig(vision_config={"image_size": args.image_size or 224}, **weights)
    if args.model_size not in MODEL_SIZES:
        sizes = ", ".join((*MODEL_SIZES, RESNET_SIZE))
        raise ValueError(f"--model_size {args.model_size} does not exist; there are {sizes}.")
    size = MODEL_SIZES[args.model_size]
    given = {name: getattr(args, name) for name in ("image_size", "patch_size") if getattr(args, name) is not None}
    vision_config = {**size["vision_config"], **given}
    if vision_config["image_size"] % vision_config["patch_size"]:
        raise ValueError(
            f"Images of {vision_config['image_size']} pixels do not divide into patches of {vision_config['patch_size']}: "
            "set --image_size and --patch_size."
        )
    return CyCLIPConfig(**{**size, "vision_config": vision_config}, **weights)
