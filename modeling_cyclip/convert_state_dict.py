"""The names and shapes of CLIP's original code (https://github.com/openai/CLIP, `clip/model.py`) against those here.

CyCLIP's official code and OpenCLIP share them. They say everything about a model except its activation and its numbers
of heads.
"""

import math
import re

import torch
from torch import Tensor

from .configuration_cyclip import CyCLIPConfig
from .configuration_cyclip_resnet import CyCLIPResNetConfig
from .modeling_cyclip import CyCLIPModel
from .modeling_cyclip_resnet import CyCLIPResNetModel


# What OpenAI's archives hold besides weights.
_METADATA = {"input_resolution", "context_length", "vocab_size"}

# Our names to theirs, in this order.
_RENAMES = (
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.", "visual."),
    (r"\.self_attn\.[qkv]_proj\.", ".attn.in_proj_"),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
# Their two projections of transformers are matrices to multiply by from the right, ours are linear layers.
_TRANSPOSED = {"text_projection", "visual.proj"}


def _their_names(names) -> dict[str, str]:
    """Our names to theirs. Query, key and value are one matrix there, and the output of a ResNet is its pooling's."""
    resnet = "vision_model.attnpool.q_proj.weight" in names
    renamed = {}
    for name in names:
        theirs = name
        for pattern, replacement in _RENAMES:
            theirs = re.sub(pattern, replacement, theirs)
        if theirs.startswith("visual_projection."):
            theirs = theirs.replace("visual_projection", "visual.attnpool.c_proj") if resnet else "visual.proj"
        renamed[name] = theirs
    return renamed


def infer_config(
    state_dict: dict[str, Tensor],
    hidden_act: str = "quick_gelu",
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> CyCLIPConfig:
    r"""
    The configuration that the shapes of a state dict describe.

    Args:
        state_dict (`dict[str, torch.Tensor]`):
            Weights under the names of OpenAI's CLIP.
        hidden_act (`str`, *optional*, defaults to `"quick_gelu"`):
            Activation of the transformers, which shapes do not tell.
        vision_heads (`int`, *optional*):
            Attention heads of the vision tower. By default one for every 64 channels.
        text_heads (`int`, *optional*):
            Attention heads of the text tower. By default one for every 64 channels.

    Returns:
        [`CyCLIPConfig`], or [`CyCLIPResNetConfig`] for a ResNet tower.

    Raises:
        `ValueError`: a state dict that is none of a CLIP model with a plain vision transformer or ResNet.
    """

    def shape(key: str) -> torch.Size:
        if key not in state_dict:
            raise ValueError(
                f"These are no weights of CLIP: `{key}` is missing among {', '.join(list(state_dict)[:8])}, ..."
            )
        return state_dict[key].shape

    def count(pattern: str) -> int:
        found = (re.match(pattern, key) for key in state_dict)
        return 1 + max((int(match[1]) for match in found if match), default=0)

    def grid(key: str) -> int:
        size = math.isqrt(shape(key)[0] - 1)
        if size**2 != shape(key)[0] - 1:
            raise ValueError(f"`{key}` has {shape(key)[0]} positions, which is no square and one.")
        return size

    def heads(width: int, given: int | None, tower: str) -> int:
        if given is None and width % 64:
            raise ValueError(f"Give the number of {tower} heads: its width {width} is not a multiple of 64.")
        return width // 64 if given is None else given

    vocab_size, text_width = shape("token_embedding.weight")
    projection_dim = shape("text_projection")[1]
    text_config = {
        "vocab_size": vocab_size,
        "hidden_size": text_width,
        "intermediate_size": shape("transformer.resblocks.0.mlp.c_fc.weight")[0],
        "projection_dim": projection_dim,
        "num_hidden_layers": count(r"transformer\.resblocks\.(\d+)\."),
        "num_attention_heads": heads(text_width, text_heads, "text"),
        "max_position_embeddings": shape("positional_embedding")[0],
        "hidden_act": hidden_act,
        # CLIP reads a text at its highest id. transformers does at `eos_token_id`, which has the highest.
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "pad_token_id": vocab_size - 1,
    }
    if "visual.attnpool.positional_embedding" in state_dict:
        width = shape("visual.attnpool.positional_embedding")[1]
        vision_config = {
            "depths": [count(rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)],
            "embedding_size": shape("visual.conv3.weight")[0],
            "num_attention_heads": heads(width, vision_heads, "vision"),
            "num_channels": shape("visual.conv1.weight")[1],
            "image_size": 32 * grid("visual.attnpool.positional_embedding"),
            "projection_dim": projection_dim,
        }
        return CyCLIPResNetConfig(text_config=text_config, vision_config=vision_config, projection_dim=projection_dim)
    width, channels, patch_size, _ = shape("visual.conv1.weight")
    vision_config = {
        "hidden_size": width,
        "intermediate_size": shape("visual.transformer.resblocks.0.mlp.c_fc.weight")[0],
        "projection_dim": projection_dim,
        "num_hidden_layers": count(r"visual\.transformer\.resblocks\.(\d+)\."),
        "num_attention_heads": heads(width, vision_heads, "vision"),
        "num_channels": channels,
        "image_size": patch_size * grid("visual.positional_embedding"),
        "patch_size": patch_size,
        "hidden_act": hidden_act,
    }
    return CyCLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=projection_dim)


def model_from_state_dict(state_dict: dict[str, Tensor], **kwargs) -> CyCLIPModel:
    r"""
    The model that a state dict holds, each weight bit for bit.

    Args:
        state_dict (`dict[str, torch.Tensor]`):
            Weights under the names of OpenAI's CLIP. Where they are of several floating point types, as OpenAI's are,
            the model is in float32, which holds them all.
        kwargs (*optional*):
            What [`infer_config`] takes.

    Returns:
        [`CyCLIPModel`] or [`CyCLIPResNetModel`], in evaluation mode.

    Raises:
        `ValueError`: unknown or missing keys, or shapes that do not fit together. The message lists them.
    """
    state_dict = {key: value for key, value in state_dict.items() if key not in _METADATA}
    config = infer_config(state_dict, **kwargs)
    model = (CyCLIPResNetModel if isinstance(config, CyCLIPResNetConfig) else CyCLIPModel)(config).eval()
    own = model.state_dict()
    names = _their_names(own)

    problems = []
    if unknown := sorted(set(state_dict) - set(names.values())):
        problems.append(f"unknown keys: {', '.join(unknown)}")
    if missing := sorted(set(names.values()) - set(state_dict)):
        problems.append(f"missing keys: {', '.join(missing)}")
    shapes = {key: value.shape for key, value in model_to_state_dict(own).items()}
    if misshapen := [key for key in shapes if key in state_dict and state_dict[key].shape != shapes[key]]:
        described = (f"{key} {tuple(state_dict[key].shape)}, not {tuple(shapes[key])}" for key in misshapen)
        problems.append(f"wrong shapes: {'; '.join(described)}")
    if problems:
        raise ValueError(f"The weights are not those of a {type(model).__name__}.\n" + "\n".join(problems))

    converted = {}
    for name, theirs in names.items():
        tensor = state_dict[theirs]
        if theirs in _TRANSPOSED:
            tensor = tensor.T
        elif match := re.search(r"\.self_attn\.([qkv])_proj\.", name):
            tensor = tensor.chunk(3)["qkv".index(match[1])]
        converted[name] = tensor
    dtypes = {tensor.dtype for tensor in state_dict.values() if tensor.is_floating_point()}
    model.to(dtypes.pop() if len(dtypes) == 1 else torch.float32)
    model.load_state_dict(converted)
    return model


def model_to_state_dict(model: CyCLIPModel | dict[str, Tensor]) -> dict[str, Tensor]:
    r"""
    The weights of a model under the names of OpenAI's CLIP, as OpenCLIP takes them.

    Args:
        model ([`CyCLIPModel`] or `dict[str, torch.Tensor]`):
            A model or its state dict.

    Returns:
        `dict[str, torch.Tensor]`
    """
    state_dict = model if isinstance(model, dict) else model.state_dict()
    converted = {}
    for name, theirs in _their_names(state_dict).items():
        if theirs in _TRANSPOSED:
            converted[theirs] = state_dict[name].T.contiguous()
        elif match := re.search(r"\.self_attn\.[qkv]_proj\.", name):
            parts = (name.replace(match[0], f".self_attn.{letter}_proj.") for letter in "qkv")
            converted[theirs] = torch.cat([state_dict[part] for part in parts])
        else:
            converted[theirs] = state_dict[name]
    return converted


__all__ = ["infer_config", "model_from_state_dict", "model_to_state_dict"]
