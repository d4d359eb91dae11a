"""CyCLIP model configuration with CLIP's ResNet vision towers, which the paper trains."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CLIPTextConfig, PreTrainedConfig

from .configuration_cyclip import CyCLIPConfig


@strict
class CyCLIPResNetVisionConfig(PreTrainedConfig):
    r"""
    Configuration of a [`CyCLIPResNetVisionModel`], the modified ResNet of
    [CLIP](https://huggingface.co/papers/2103.00020) (section 2.4). The defaults are RN50's.

    Args:
        depths (`list[int]`, *optional*, defaults to `[3, 4, 6, 3]`):
            Bottleneck blocks of each of the four stages.
        embedding_size (`int`, *optional*, defaults to 64):
            Channels after the stem. The four stages output 4, 8, 16 and 32 times as many. The last is `hidden_size`.
        num_attention_heads (`int`, *optional*, defaults to 32):
            Heads of the attention pooling. The released towers have one head for every 64 channels of `hidden_size`.
        num_channels (`int`, *optional*, defaults to 3):
            Channels of the images.
        image_size (`int`, *optional*, defaults to 224):
            Height and width of the images. Must be a multiple of 32.
        projection_dim (`int`, *optional*, defaults to 1024):
            Dimension of the space that images and texts share. The model uses the value of [`CyCLIPResNetConfig`].
        initializer_factor (`float`, *optional*, defaults to 1.0):
            Factor of the standard deviations that the attention pooling is initialised with.

    | tower | `depths` | `embedding_size` | `num_attention_heads` | `image_size` | `projection_dim` |
    |---|---|---|---|---|---|
    | RN50 | 3, 4, 6, 3 | 64 | 32 | 224 | 1024 |
    | RN101 | 3, 4, 23, 3 | 64 | 32 | 224 | 512 |
    | RN50x4 | 4, 6, 10, 6 | 80 | 40 | 288 | 640 |
    """

    model_type = "cyclip_resnet_vision_model"
    base_config_key = "vision_config"

    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    embedding_size: int = 64
    num_attention_heads: int = 32
    num_channels: int = 3
    image_size: int = 224
    projection_dim: int = 1024
    initializer_factor: float = 1.0

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage, which the attention pooling takes."""
        return 32 * self.embedding_size

    @property
    def num_hidden_layers(self) -> int:
        """The number of stages, each of which adds one to `hidden_states`."""
        return len(self.depths)

    def validate_architecture(self):
        """Part of `@strict`-powered validation. Validates the architecture of the config."""
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise ValueError(f"`depths` must be four numbers of blocks of at least 1, got {self.depths}.")
        if self.embedding_size < 2 or self.embedding_size % 2:
            raise ValueError(f"`embedding_size` must be even, got {self.embedding_size}: the stem starts with half.")
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"The hidden size ({self.hidden_size}) is not a multiple of the number of attention "
                f"heads ({self.num_attention_heads})."
            )
        if self.image_size < 32 or self.image_size % 32:
            raise ValueError(f"`image_size` must be a multiple of 32, the tower's stride, got {self.image_size}.")


@strict
class CyCLIPResNetConfig(CyCLIPConfig):
    r"""
    Configuration of a [`CyCLIPResNetModel`]: a [`CyCLIPConfig`] with a ResNet vision tower. It has its own `model_type`,
    since transformers does not have this tower. The defaults are those of the paper's RN50.

    Args:
        projection_dim (`int`, *optional*, defaults to 1024):
            Dimension of the space that images and texts share.
        kwargs (*optional*):
            Arguments of [`CyCLIPConfig`]. `vision_config` is a [`CyCLIPResNetVisionConfig`] or a `dict` of its values.

    Example:

    ```python
    >>> from modeling_cyclip import CyCLIPResNetConfig, CyCLIPResNetModel

    >>> model = CyCLIPResNetModel(CyCLIPResNetConfig())  # RN50
    >>> rn101 = CyCLIPResNetConfig(vision_config={"depths": [3, 4, 23, 3]}, projection_dim=512)
    >>> rn50x4 = CyCLIPResNetConfig(
    ...     vision_config={"depths": [4, 6, 10, 6], "embedding_size": 80, "num_attention_heads": 40, "image_size": 288},
    ...     text_config={"hidden_size": 640, "intermediate_size": 2560, "num_attention_heads": 10},
    ...     projection_dim=640,
    ... )
    ```
    """

    model_type = "cyclip"
    sub_configs_defaults = {  # noqa: RUF012 (transformers reads it from the class)
        "vision_config": CyCLIPResNetVisionConfig,
        "text_config": CLIPTextConfig,
    }

    vision_config: dict | CyCLIPResNetVisionConfig | None = None
    projection_dim: int = 1024

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        # transformers itself notes only one Auto class for the model, and the pipeline needs another one.
        output["auto_map"] = {
            "AutoConfig": "configuration_cyclip_resnet.CyCLIPResNetConfig",
            "AutoModel": "modeling_cyclip_resnet.CyCLIPResNetModel",
            "AutoModelForZeroShotImageClassification": "modeling_cyclip_resnet.CyCLIPResNetModel",
        }
        return output


# A saved checkpoint carries this file, so that it opens where this package is not installed.
CyCLIPResNetConfig.register_for_auto_class()
