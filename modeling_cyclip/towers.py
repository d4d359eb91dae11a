"""A dual encoder of two pretrained towers: for locked-image tuning (LiT; Zhai et al., 2022), or for texts in other languages."""

import math
from typing import Any

import torch
from transformers import (
    MODEL_MAPPING,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)
from transformers.image_utils import PILImageResampling
from transformers.utils import logging

from .dual_encoder import open_whole


logger = logging.get_logger(__name__)

TIMM = "timm_wrapper"

READS = {"vision": "pixel_values", "text": "input_ids"}


def pair_towers(
    vision_name: str,
    text_name: str,
    frozen: tuple[str, ...] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[VisionTextDualEncoderModel, VisionTextDualEncoderProcessor]:
    r"""
    Makes a [`~transformers.VisionTextDualEncoderModel`] of two towers. Its projections are new, and so is `logit_scale`.

    Args:
        vision_name (`str`):
            A folder or a name on the Hub with a vision model, or a dual encoder whose vision tower is meant.
        text_name (`str`):
            A folder or a name on the Hub with a text model that has a pooled output, such as BERT and XLM-R, or a dual encoder.
        frozen (`tuple[str]`, *optional*):
            Those of the towers `vision` and `text` that will not be trained, and so need all of their weights.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            A tokenizer instead of the text tower's.

    Returns:
        `tuple(VisionTextDualEncoderModel, VisionTextDualEncoderProcessor)`: the model in float32, and its processor.

    Raises:
        `ValueError`: what cannot be opened, no tower of its kind, a frozen tower that lacks weights, or one that the dual encoder
        of transformers does not take.
    """
    towers = {
        "vision": _open_tower("vision", vision_name, "vision" in frozen),
        "text": _open_tower("text", text_name, "text" in frozen),
    }
    image_processor = _open("vision", vision_name, AutoImageProcessor.from_pretrained, "image processor")
    if towers["vision"].config.model_type == TIMM:
        image_processor = timm_image_processor(image_processor.data_config)
    if tokenizer is None:
        tokenizer = _open("text", text_name, AutoTokenizer.from_pretrained, "tokenizer")
    configs = [tower.config for tower in towers.values()]
    # The dual encoder asks for the width of the pooled output.
    if configs[0].model_type == TIMM:
        configs[0].hidden_size = towers["vision"].timm_model.head_hidden_size
    elif not hasattr(configs[0], "hidden_size") and hasattr(configs[0], "hidden_sizes"):
        # Of its stages, as in ConvNext. The last one is that of the pooled output.
        configs[0].hidden_size = configs[0].hidden_sizes[-1]
    try:
        config = VisionTextDualEncoderConfig.from_vision_text_configs(*configs)
        model = VisionTextDualEncoderModel(config, towers["vision"], towers["text"])
    except (AttributeError, ValueError) as error:
        names = " and a ".join(type(tower).__name__ for tower in towers.values())
        reason = str(error).splitlines()[0]
        raise ValueError(f"transformers makes no dual encoder of a {names}: {reason}") from error
    return model, VisionTextDualEncoderProcessor(image_processor, tokenizer)


def timm_image_processor(data_config: dict[str, Any]) -> BaseImageProcessor:
    r"""
    CLIP's image processor with the settings of a timm model: the same pixels but for rounding, a grey level or a pixel of the
    crop. transformers' own for timm cannot be saved in a processor.

    Args:
        data_config (`dict`):
            timm's `input_size`, `crop_pct`, `crop_mode`, `interpolation`, `mean` and `std`.

    Returns:
        [`~transformers.BaseImageProcessor`]

    Raises:
        `ValueError`: images that are not square, or a way to crop them that CLIP's processor does not know.
    """
    _, height, width = data_config["input_size"]
    crop_mode, interpolation = data_config["crop_mode"] or "center", data_config["interpolation"].upper()
    if height != width or crop_mode not in ("center", "squash") or interpolation not in PILImageResampling.__members__:
        raise ValueError(
            f"A timm model whose images are {height}x{width}, cropped by the mode {crop_mode} and resized by {interpolation.lower()} does "
            "not train here: only square ones by center or squash do, resized in a way that Pillow has."
        )
    # Imported only here, since without torchvision transformers logs a line at this import.
    from transformers import CLIPImageProcessor

    resized = math.floor(height / data_config["crop_pct"])
    return CLIPImageProcessor(
        size={"shortest_edge": resized} if crop_mode == "center" else {"height": resized, "width": resized},
        crop_size=height,
        resample=PILImageResampling[interpolation],
        image_mean=data_config["mean"],
        image_std=data_config["std"],
    )


def _open_tower(kind: str, name: str, is_frozen: bool) -> PreTrainedModel:
    model, loading_info = _open(kind, name, lambda name: open_whole(AutoModel, name, torch.float32), "model")
    prefix = ""
    if hasattr(model, "get_image_features"):  # a dual encoder itself
        model, prefix = model.get_submodule(f"{kind}_model"), f"{kind}_model."
    if model.main_input_name != READS[kind]:
        raise ValueError(
            f"--{kind}_model {name} is a {type(model).__name__}, which reads {model.main_input_name} and not {READS[kind]}."
        )
    if type(model.config) not in MODEL_MAPPING:
        raise ValueError(
            f"--{kind}_model {name} has a {type(model).__name__}, which transformers' AutoModel does not open by itself, and so not "
            "within a dual encoder: take another tower."
        )
    if missing := sorted(key for key in loading_info["missing_keys"] if key.startswith(prefix)):
        what = f"--{kind}_model {name} lacks {missing[0]} and {len(missing) - 1} others of its weights"
        if is_frozen:
            raise ValueError(
                f"{what}, which would stay random: leave out --freeze_{kind}, or take another checkpoint."
            )
        logger.warning(f"{what}: they begin at random.")
    return model


def _open(kind: str, name: str, opener: Any, what: str) -> Any:
    try:
        return opener(name)
    except (ImportError, OSError, TypeError, ValueError) as error:  # the first and the third are timm's
        reason = " ".join(str(error).split())
        raise ValueError(f"--{kind}_model {name}: its {what} cannot be opened: {reason}") from error
