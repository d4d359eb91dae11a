"""Averages the weights of two checkpoints of a dual encoder: a fine-tuned one with that which it started from."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPProcessor, PreTrainedModel, ProcessorMixin

from .arguments import check_new_folder
from .data.tokenizer import is_empty
from .dual_encoder import open_dual_encoder, open_processor
from .modeling_cyclip import CyCLIPModel


# Settings that change what weights mean, but none of their names and shapes: a BERT's and a RoBERTa's are equal. A setting that a
# tower lacks counts as `None`.
TOWER_SETTINGS = ("model_type", "hidden_act", "num_attention_heads", "pooler_act", "rope_theta")


def merge_checkpoints(
    start: str | Path, end: str | Path, target: str | Path, end_weight: float = 0.5
) -> PreTrainedModel:
    r"""
    Writes a checkpoint whose weights are the average of two others', as in WiSE-FT ([Wortsman et al.,
    2022](https://huggingface.co/papers/2109.01903)). All but the weights is that of `end`: class, configuration with the
    cyclic weights of a CLIP, precision, tokenizer and image processor.

    Args:
        start (`str` or `Path`):
            A folder or a name on the Hub with the checkpoint of a CLIP, or of another dual encoder of transformers that
            embeds images and texts, such as SigLIP.
        end (`str` or `Path`):
            Another one, trained on from `start`.
        target (`str` or `Path`):
            A new or empty folder.
        end_weight (`float`, *optional*, defaults to 0.5):
            Weight of `end` in the average, from 0 to 1. That of `start` is the rest.

    Returns:
        [`~transformers.PreTrainedModel`]: the model, a [`CyCLIPModel`] if it is a CLIP.

    Raises:
        `FileExistsError`: `target` is not empty.
        `ValueError`: a weight that is none, checkpoints that cannot be opened, or two that have no average.
    """
    target = Path(target)
    _check_weight(end_weight)
    check_new_folder(target)
    start_model, start_processor = _open(start, torch.float32)
    end_model, end_processor = _open(end, "auto")
    if start_processor.tokenizer.get_vocab() != end_processor.tokenizer.get_vocab():
        raise ValueError(
            f"The tokenizers of {start} and {end} have different vocabularies: one token is another word in each, and their "
            "text towers have no average."
        )
    end_model.load_state_dict(average_weights(start_model, end_model, end_weight))
    # transformers 4 looks for the image processor's own file.
    end_processor.image_processor.save_pretrained(target)
    end_processor.save_pretrained(target)
    end_model.save_pretrained(target)
    return end_model


def average_weights(start: PreTrainedModel, end: PreTrainedModel, end_weight: float = 0.5) -> dict[str, Tensor]:
    r"""
    The state dict (1 - w) · start + w · end, computed in float32.

    Args:
        start ([`~transformers.PreTrainedModel`]):
            A model with the towers `config.text_config` and `config.vision_config`.
        end ([`~transformers.PreTrainedModel`]):
            Another one of the same architecture.
        end_weight (`float`, *optional*, defaults to 0.5):
            w, from 0 to 1.

    Returns:
        `dict[str, Tensor]`: averages in the precision of `end`. Integers, which are counters, are those of `end`. Means and
        variances of batch norms are averaged as weights are.

    Raises:
        `ValueError`: `end_weight` is outside [0, 1], or the models differ in kind, in settings of their towers, or in names
        or shapes of their weights.
    """
    _check_weight(end_weight)
    if type(start) is not type(end):
        raise ValueError(
            f"Models of different kinds have no average: the start is a {type(start).__name__}, the end a "
            f"{type(end).__name__}."
        )
    weights, end_weights = start.state_dict(), end.state_dict()
    for name in weights | end_weights:
        shape, end_shape = (
            tuple(tensors[name].shape) if name in tensors else "absent" for tensors in (weights, end_weights)
        )
        if shape != end_shape:
            raise ValueError(
                f"Models with different weights have no average: {name} is {shape} in the start, {end_shape} in the end."
            )
    for tower in ("text_config", "vision_config"):
        for name in TOWER_SETTINGS:
            value, end_value = (getattr(getattr(model.config, tower), name, None) for model in (start, end))
            if value != end_value:
                raise ValueError(
                    f"Models with different settings have no average: {tower}.{name} is {value} in the start, {end_value} in "
                    "the end."
                )
    return {name: _average(weights[name], end_weights[name], end_weight) for name in end_weights}


def _average(start: Tensor, end: Tensor, end_weight: float) -> Tensor:
    # No arithmetic at 0 and 1, which could change the sign of a zero.
    if end_weight == 1 or not end.is_floating_point():
        return end
    if end_weight == 0:
        return start.to(end.dtype)
    # `lerp` leaves as it is what is the same in both, such as a frozen tower. A sum of two products would round it.
    return start.float().lerp(end.float(), end_weight).to(end.dtype)


def _check_weight(end_weight: float) -> None:
    if not 0 <= end_weight <= 1:
        raise ValueError(f"The weight of the end is from 0 to 1, got {end_weight}.")


def _open(name: str | Path, dtype: torch.dtype | str) -> tuple[PreTrainedModel, ProcessorMixin]:
    try:
        model = open_dual_encoder(name, dtype)
        is_clip = isinstance(model, CyCLIPModel)
        processor = CLIPProcessor.from_pretrained(name) if is_clip else open_processor(name)
    except (OSError, SafetensorError) as error:
        kind = "" if Path(name).is_dir() else ", which is no folder here,"
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name}{kind} cannot be opened as a checkpoint: {reason}") from error
    if model._hf_peft_config_loaded:
        raise ValueError(f"{name} is an adapter: merge it into its checkpoint first (cyclip train with --merge_lora).")
    if is_empty(processor.tokenizer):
        raise ValueError(f"{name} has no tokenizer: save the one that its weights were trained with there.")
    return model, processor
