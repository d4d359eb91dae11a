"""Any model of transformers that embeds images and texts, trained by its own contrastive loss with the cyclic terms."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils import find_adapter_config_file

from .configuration_cyclip import CyclicTerms, CyCLIPConfig, terms_at
from .data.data_collator import check_image_processor, normalize, process_image
from .data.tokenizer import CLIP_TYPES, check_tokenizer, padding_of, tokenize
from .distributed import training_process_group
from .loss import CyCLIPLossOutput, cyclip_loss
from .modeling_cyclip import CyCLIPModel, CyCLIPOutput, refuse_missing


# What a tower and its projection are called in every dual encoder of transformers. SigLIP has its projections in the towers.
TOWERS = {"vision": ("vision_model", "visual_projection"), "text": ("text_model", "text_projection")}

# How far the embedding of a caption alone may lie from that in a batch: as a share of its distance from another caption's, and in
# steps of the precision. Padding that is read moves it as far as other words do, whatever the scale of a model's distances.
SHARE, ROUNDING_STEPS = 0.01, 8


@dataclass
class DualEncoderOutput(CyCLIPOutput):
    r"""
    What a dual encoder returns that [`CyCLIPTrainer`] trains: a [`CyCLIPOutput`], and the bias of the logits.

    Args:
        logit_bias (`torch.FloatTensor` of shape `()`, *optional*):
            The bias, where the model has one. Its loss is then SigLIP's.
    """

    logit_bias: torch.FloatTensor | None = None


def check_dual_encoder(model: nn.Module) -> None:
    """
    Raises a `ValueError` unless the model is a dual encoder: a model of transformers with `get_image_features`,
    `get_text_features` and the parameter `logit_scale`, and perhaps `logit_bias`.
    """
    lacking = _lacking_methods(type(model))
    if not isinstance(getattr(model, "logit_scale", None), nn.Parameter):
        lacking.append("logit_scale")
    if not isinstance(model, PreTrainedModel):
        lacking.append("PreTrainedModel among its classes")
    if lacking:
        raise ValueError(_not_a_dual_encoder(type(model).__name__, lacking))


def _lacking_methods(model_class: type) -> list[str]:
    return [name for name in ("get_image_features", "get_text_features") if not hasattr(model_class, name)]


def _not_a_dual_encoder(what: str, lacking: list[str]) -> str:
    return (
        f"{what} has no {' and no '.join(lacking)}: only models of transformers that embed images and texts in one space train "
        "here, such as CyCLIPModel, SiglipModel and VisionTextDualEncoderModel."
    )


def has_sigmoid_loss(model: nn.Module) -> bool:
    """Whether a dual encoder has a `logit_bias`, and so SigLIP's loss."""
    return isinstance(getattr(model, "logit_bias", None), nn.Parameter)


def terms_of(model: PreTrainedModel) -> CyCLIPConfig | CyclicTerms:
    """The cyclic terms that a model trains with, wherever they are kept."""
    return model.config if isinstance(model, CyCLIPModel) else model.cyclic_terms


def open_dual_encoder(name_or_path: str, dtype: torch.dtype | str, **weights: Any) -> PreTrainedModel:
    r"""
    Opens the checkpoint of a dual encoder: a CLIP as a [`CyCLIPModel`], any other kind as its own class.

    Args:
        name_or_path (`str`):
            A folder, or a name on the Hub.
        dtype (`torch.dtype` or `str`):
            The precision of the weights, or `"auto"` for that of the checkpoint.
        weights (*optional*):
            Cyclic terms for the configuration of a [`CyCLIPModel`].

    Returns:
        [`~transformers.PreTrainedModel`]

    Raises:
        `ValueError`: another kind of model, or a checkpoint that lacks weights or has them in other shapes.
        `OSError`: no checkpoint.
    """
    is_file = Path(name_or_path).is_file()  # which CyCLIPModel refuses with the way to convert it
    model_type = None if is_file else _model_type(name_or_path)
    if model_type is None and not is_file and (adapter_config := find_adapter_config_file(name_or_path)) is not None:
        base = json.loads(Path(adapter_config).read_text(encoding="utf-8"))["base_model_name_or_path"]
        if _model_type(base) not in CLIP_TYPES:
            model = open_dual_encoder(base, dtype)
            refuse_missing(name_or_path, model.load_adapter(name_or_path).missing_keys, type(model).__name__)
            return model
    if model_type is None or model_type in CLIP_TYPES:
        return CyCLIPModel.from_pretrained(name_or_path, dtype=dtype, **weights)
    model_class = MODEL_MAPPING.get(type(AutoConfig.from_pretrained(name_or_path)), object)
    if lacking := _lacking_methods(model_class):
        raise ValueError(_not_a_dual_encoder(f"{name_or_path} is a checkpoint of type {model_type}, which", lacking))
    model, loading_info = open_whole(model_class, name_or_path, dtype)
    refuse_missing(name_or_path, loading_info["missing_keys"], model_class.__name__)
    check_dual_encoder(model)
    return model


def _model_type(name_or_path: str) -> str | None:
    return PreTrainedConfig.get_config_dict(name_or_path)[0].get("model_type")


def open_whole(opener: Any, name_or_path: str, dtype: torch.dtype | str) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A checkpoint by a class's `from_pretrained`, and what was missing. Raises a `ValueError` for weights of other shapes."""
    try:
        return opener.from_pretrained(name_or_path, dtype=dtype, output_loading_info=True)
    except RuntimeError as error:
        raise ValueError(
            f"{name_or_path} has weights of other shapes than its configuration: its config.json is of another model."
        ) from error


def load_weights(model: PreTrainedModel, checkpoint: str) -> None:
    """
    Loads all weights of a checkpoint into a model. transformers' Trainer would look for them by the names of the modules, under
    which transformers does not save every model (a ViT, for one), and would leave those as they are that it does not find.
    """
    saved, _ = open_whole(type(model), checkpoint, model.dtype)
    model.load_state_dict(saved.state_dict())


def open_processor(name_or_path: str) -> ProcessorMixin:
    """The tokenizer and the image processor of a checkpoint. Raises a `ValueError` where one of them is missing."""
    lacks = f"{name_or_path} lacks a tokenizer or an image processor"
    try:
        processor = AutoProcessor.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{lacks}: {error}") from error
    if not isinstance(processor, ProcessorMixin):
        raise ValueError(f"{lacks}: it has a {type(processor).__name__} only")
    return processor


def pooled(output: Any) -> Tensor:
    """The features in what `get_image_features` or `get_text_features` returns, `(batch, dim)`."""
    return output if isinstance(output, Tensor) else output.pooler_output


def embedding_dim(config: PreTrainedConfig) -> int:
    """The dimension of the space of images and texts."""
    # SigLIP has no projection beside its towers.
    return config.text_config.projection_size if config.model_type == "siglip" else config.projection_dim


def train_with_terms(model: PreTrainedModel, terms: CyclicTerms) -> None:
    """
    Gives this one model the forward pass and the loss that a [`CyCLIPModel`] has, so that both train in the same way. Its
    class, its weights and what it saves stay its own.
    """
    for name, parameter in model.named_parameters():
        # DINOv2's stands for masked patches, of which there are none here. DDP would wait for its gradient.
        if name.endswith("mask_token"):
            parameter.requires_grad_(False)
    model.cyclic_terms = terms
    model.forward, model.compute_loss = MethodType(_forward, model), MethodType(_compute_loss, model)
    # A contrastive loss is not a sum over samples, so the Trainer must not rescale it by their number.
    model.accepts_loss_kwargs = False


def _forward(
    model: PreTrainedModel,
    pixel_values: Tensor,
    return_loss: bool | None = None,
    cyclic_weight_factor: float = 1.0,
    return_all_parts: bool = True,
    augmented_pixel_values: Tensor | None = None,
    **text_inputs: Tensor,
) -> DualEncoderOutput:
    """As `CyCLIPModel.forward`. What is not pixel values goes to the text tower."""
    has_views = augmented_pixel_values is not None
    if has_views:
        pixel_values = torch.cat([pixel_values, augmented_pixel_values])
        text_inputs = {
            name: torch.cat([tensor, text_inputs[f"augmented_{name}"]])
            for name, tensor in text_inputs.items()
            if not name.startswith("augmented_")
        }
    vision_outputs = model.get_image_features(pixel_values=pixel_values)
    text_outputs = model.get_text_features(**text_inputs)
    image_embeds, text_embeds = (
        features / features.norm(dim=-1, keepdim=True) for features in (pooled(vision_outputs), pooled(text_outputs))
    )
    views = {}
    if has_views:
        image_embeds, views["augmented_image_embeds"] = image_embeds.chunk(2)
        text_embeds, views["augmented_text_embeds"] = text_embeds.chunk(2)
    # SigLIP's are vectors of one number.
    numbers = {"logit_scale": model.logit_scale.exp().reshape(())}
    if has_sigmoid_loss(model):
        numbers["logit_bias"] = model.logit_bias.reshape(())

    logits_per_image = logits_per_text = None
    if not model.training:
        logits_per_text = text_embeds @ image_embeds.T * numbers["logit_scale"] + numbers.get("logit_bias", 0)
        logits_per_image = logits_per_text.T

    parts = {}
    if return_loss:
        parts = model.compute_loss(
            image_embeds,
            text_embeds,
            **numbers,
            **views,
            cyclic_weight_factor=cyclic_weight_factor,
            return_all_parts=return_all_parts,
        )._asdict()
    return DualEncoderOutput(
        logits_per_image=logits_per_image,
        logits_per_text=logits_per_text,
        text_embeds=text_embeds,
        image_embeds=image_embeds,
        text_model_output=text_outputs,
        vision_model_output=vision_outputs,
        **numbers,
        **parts,
        **views,
    )


def _compute_loss(
    model: PreTrainedModel,
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    cyclic_weight_factor: float = 1.0,
    **options: Any,
) -> CyCLIPLossOutput:
    """As `CyCLIPModel.compute_loss`."""
    return cyclip_loss(
        image_embeds,
        text_embeds,
        logit_scale,
        logit_bias,
        **terms_at(model.cyclic_terms, cyclic_weight_factor),
        **options,
        process_group=training_process_group() if model.training else None,
    )


def check_processor(model: PreTrainedModel, processor: ProcessorMixin, max_length: int) -> None:
    """Raises a `ValueError` where the model cannot take, or would not read, what its processor makes."""
    check_tokenizer(processor.tokenizer, model.config)
    if isinstance(model, CyCLIPModel):
        check_image_processor(processor.image_processor, model.config)
    else:
        check_embeddings(model, processor, max_length)


@torch.no_grad()
def check_embeddings(model: PreTrainedModel, processor: ProcessorMixin, max_length: int) -> None:
    """
    Embeds a grey image, a short and a long caption. Raises a `ValueError` where a tower does not take what the processor
    makes, where it has no pooled output or another dimension than the other tower, or where it does not read a caption as it
    should: the short one has another embedding beside the long one than alone, or both have the same.
    """
    name = type(model).__name__
    was_training = model.training
    model.eval()
    try:
        pixels = process_image(processor.image_processor, Image.new("RGB", (3, 2), "grey"))
        pixel_values = normalize(processor.image_processor, pixels[None]).to(model.device, model.dtype)
        what = f"images of shape {tuple(pixels.shape)}, as its processor makes them"
        image = _features(name, what, model.get_image_features, pixel_values=pixel_values)

        captions = ["a photo of a cat", "two dogs on a green lawn " * max_length]
        batches = [
            tokenize(processor.tokenizer, batch, max_length, padding_of(model.config)).items()
            for batch in (captions, captions[:1])
        ]
        together, alone = (
            _features(
                name,
                f"captions of {max_length} tokens",
                model.get_text_features,
                **{key: tensor.to(model.device) for key, tensor in batch},
            )
            for batch in batches
        )
    finally:
        model.train(was_training)
    if image.shape[1] != together.shape[1]:
        raise ValueError(
            f"{name} gives images {image.shape[1]} features and texts {together.shape[1]}: they share no space."
        )
    short, long = F.normalize(together, dim=-1)
    distance, moved = (short - long).norm(), (short - F.normalize(alone, dim=-1)[0]).norm()
    if moved > SHARE * distance + ROUNDING_STEPS * torch.finfo(model.dtype).eps:
        raise ValueError(
            f"{name} gives a caption another embedding beside a longer one than alone: it does not read past the padding of "
            "this tokenizer. Take the tokenizer that the text tower came with, and check its `padding_side` and its "
            "`model_input_names`, which should have `attention_mask`."
        )
    if distance < torch.finfo(torch.float32).eps:
        raise ValueError(
            f"{name} gives all captions one embedding: it looks for a token with which this tokenizer ends no text. Take the "
            "tokenizer that the text tower came with."
        )


def _features(name: str, what: str, encode: Any, **inputs: Tensor) -> Tensor:
    try:
        features = pooled(encode(**inputs))
    except Exception as error:  # each tower has errors of its own
        raise ValueError(f"{name} cannot embed {what}: {' '.join(str(error).split())}") from error
    if features is None:
        raise ValueError(f"{name} cannot embed {what}: the tower has no pooled output.")
    return features.float()
