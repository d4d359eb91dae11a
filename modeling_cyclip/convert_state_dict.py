"""Translates names and shapes of CLIP's original code (https://github.com/openai/CLIP, `clip/model.py`) to ours and back.

CyCLIP's official code and OpenCLIP share them. They determine a model except for its activation and its numbers of heads.
"""

import math
import re

import torch
from torch import Tensor

from .configuration_cyclip import CyCLIPConfig
from .configuration_cyclip_resnet import CyCLIPResNetConfig
from .modeling_cyclip import CyCLIPModel
from .modeling_cyclip_resnet import CyCLIPResNetModel


# Entries of OpenAI's archives that are not weights.
_METADATA = {"input_resolution", "context_length", "vocab_size"}

# From our names to theirs. The patterns apply in this order.
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
# Matrices that their code multiplies by from the right. Ours are linear layers.
_TRANSPOSED = {"text_projection", "visual.proj"}


def _their_names(names) -> dict[str, str]:
    """
    Our names to theirs. Query, key and value are one matrix there. A ResNet's projection is part of its pooling there.
    """
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
    """
    The configuration that the shapes of OpenAI's weights describe. Shapes tell neither the activation nor the numbers of
    heads; the default is one head for every 64 channels. Raises a `ValueError` if the weights are not those of a CLIP
    with a plain vision transformer or a ResNet.
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
        # CLIP pools a text at its highest id, transformers at `eos_token_id`. The end of the text has the highest id.
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
    """
    The model in evaluation mode with the given weights, bit for bit. If the weights have several floating point types, as
    OpenAI's do, the model is in float32, which holds them all. Raises a `ValueError` that lists keys that are unknown or
    missing and shapes that do not fit.
    """
    # OpenCLIP's models with a text tower of their own (CustomTextCLIP) put its name first.
    state_dict = {key.removeprefix("text."): value for key, value in state_dict.items() if key not in _METADATA}
    config = infer_config(state_dict, **kwargs)
    model = (CyCLIPResNetModel if isinstance(config, CyCLIPResNetConfig) else CyCLIPModel)(config).eval()
    own = model.state_dict()
    names = _their_names(own)

    problems = []
    if unknown := sorted(set(state_dict) - set(names.values())):
        problems.append(f"unknown keys: {', '.join(unknown)}")
    if missing := sorted(set(names.values()) - set(state_dict)):
        problems.append(f"missing keys: {', '.join(missing)}")
    expected = {key: value.shape for key, value in model_to_state_dict(own).items() if key in state_dict}
    if wrong := [key for key, shape in expected.items() if state_dict[key].shape != shape]:
        described = (f"{key} {tuple(state_dict[key].shape)}, not {tuple(expected[key])}" for key in wrong)
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
    """The weights of a model or of its state dict under the names of OpenAI's CLIP, which OpenCLIP reads."""
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
