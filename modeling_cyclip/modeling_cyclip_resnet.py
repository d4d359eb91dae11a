"""PyTorch CyCLIP model with CLIP's ResNet vision towers, which the paper trains.

Names and shapes of the towers' parameters are those of CLIP's checkpoints, so that weights convert without a table.
"""

import math
from collections import OrderedDict

import torch
from torch import nn
from transformers import CLIPModel, CLIPPreTrainedModel, CLIPTextModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.clip.modeling_clip import CLIPMLP, CLIPAttention, CLIPTextEmbeddings, eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_cyclip_resnet import CyCLIPResNetConfig, CyCLIPResNetVisionConfig
from .modeling_cyclip import CyCLIPModel


class CyCLIPResNetBlock(GradientCheckpointingLayer):
    """
    A bottleneck block that replaces a strided convolution by average pooling and a convolution: blurring before
    subsampling prevents aliasing (CLIP, section 2.4, after Zhang, 2019).
    """

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        out_channels = 4 * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            # In the checkpoints the pooling, which has no weights, is number -1.
            layers = {
                "-1": nn.AvgPool2d(stride) if stride > 1 else nn.Identity(),
                "0": nn.Conv2d(in_channels, out_channels, 1, bias=False),
                "1": nn.BatchNorm2d(out_channels),
            }
            self.downsample = nn.Sequential(OrderedDict(layers))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = hidden_states if self.downsample is None else self.downsample(hidden_states)
        hidden_states = self.bn1(self.conv1(hidden_states)).relu()
        hidden_states = self.bn2(self.conv2(hidden_states)).relu()
        hidden_states = self.bn3(self.conv3(self.pool(hidden_states)))
        return (hidden_states + residual).relu()


class CyCLIPResNetStage(nn.Sequential):
    """The blocks of one resolution. The first block has the stride."""

    def __init__(self, in_channels: int, channels: int, depth: int, stride: int):
        super().__init__(
            CyCLIPResNetBlock(in_channels, channels, stride),
            *(CyCLIPResNetBlock(4 * channels, channels, 1) for _ in range(depth - 1)),
        )


class CyCLIPResNetAttentionPooling(nn.Module):
    """
    Multi-head attention whose only query is the mean of the feature map. Keys and values are this mean and all positions
    (CLIP, section 2.4). The checkpoints' output projection, `c_proj`, is the model's `visual_projection` here.
    """

    def __init__(self, config: CyCLIPResNetVisionConfig):
        super().__init__()
        self.config = config
        self.grid_size = config.image_size // 32
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scale = self.head_dim**-0.5
        self.is_causal = False
        self.positional_embedding = nn.Parameter(torch.empty(self.grid_size**2 + 1, config.hidden_size))
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def interpolated_positions(self, height: int, width: int) -> torch.Tensor:
        """Position embeddings for the mean and a feature map of `height` × `width`: `(1 + height · width, dim)`."""
        mean, grid = self.positional_embedding.split([1, self.grid_size**2])
        grid = grid.T.reshape(1, -1, self.grid_size, self.grid_size)
        grid = nn.functional.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        return torch.cat([mean, grid.flatten(2)[0].T])

    def forward(
        self,
        hidden_states: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        positions = self.positional_embedding
        if interpolate_pos_encoding:
            positions = self.interpolated_positions(*hidden_states.shape[-2:])
        tokens = hidden_states.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + positions

        batch_size = len(tokens)
        query, key, value = (
            projected.view(batch_size, -1, self.config.num_attention_heads, self.head_dim).transpose(1, 2)
            for projected in (self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens))
        )
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        pooled, weights = attention(self, query, key, value, None, scaling=self.scale, dropout=0.0, **kwargs)
        return pooled.reshape(batch_size, -1), weights


class CyCLIPResNetVisionModel(CLIPPreTrainedModel):
    r"""
    The modified ResNet of [CLIP](https://huggingface.co/papers/2103.00020): a stem of three convolutions, four stages
    with anti-aliased strides, and attention pooling instead of average pooling. It ends before the output projection.
    """

    config: CyCLIPResNetVisionConfig
    config_class = CyCLIPResNetVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ("CyCLIPResNetBlock", "CyCLIPResNetAttentionPooling")
    _can_record_outputs = {  # noqa: RUF012 (transformers reads it from the class)
        "hidden_states": CyCLIPResNetStage,
        "attentions": CyCLIPResNetAttentionPooling,
    }

    def __init__(self, config: CyCLIPResNetVisionConfig):
        super().__init__(config)
        width = config.embedding_size
        self.conv1 = nn.Conv2d(config.num_channels, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        self.layer1 = CyCLIPResNetStage(width, width, config.depths[0], stride=1)
        self.layer2 = CyCLIPResNetStage(4 * width, 2 * width, config.depths[1], stride=2)
        self.layer3 = CyCLIPResNetStage(8 * width, 4 * width, config.depths[2], stride=2)
        self.layer4 = CyCLIPResNetStage(16 * width, 8 * width, config.depths[3], stride=2)
        self.attnpool = CyCLIPResNetAttentionPooling(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.conv1

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False):
        # In custom code, transformers skips modules whose weights all belong to their children, as our blocks' do, since
        # such code might overwrite loaded weights. The functions of `init` do not overwrite them.
        PreTrainedModel._initialize_weights(self, module)

    def _init_weights(self, module: nn.Module):
        """As in CLIP: PyTorch's default for convolutions, blocks that start as the identity, scaled attention pooling."""
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif isinstance(module, CyCLIPResNetBlock):
            init.zeros_(module.bn3.weight)
        elif isinstance(module, CyCLIPResNetAttentionPooling):
            std = self.config.hidden_size**-0.5 * self.config.initializer_factor
            init.normal_(module.positional_embedding, std=std)
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                init.normal_(projection.weight, std=std)
                _init_bias_as_torch(projection)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Preprocessed images.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to resize the position embeddings of the attention pooling to the size of the images.

        Returns:
            [`~transformers.modeling_outputs.BaseModelOutputWithPooling`]: `last_hidden_state` is the last feature map
            row by row, of shape `(batch_size, height / 32 · width / 32, hidden_size)`, and `pooler_output` the pooled
            vector, of shape `(batch_size, hidden_size)`. On request, `hidden_states` holds the feature maps of the
            stem and of the four stages, each of shape `(batch_size, channels, height / stride, width / stride)`, and
            `attentions` the weights of the pooling, of shape `(batch_size, num_attention_heads, 1, 1 + positions)`.

        Raises:
            `ValueError`: no images, or images whose size is not the configuration's (without `interpolate_pos_encoding`).
        """
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        height, width = pixel_values.shape[-2:]
        size = self.config.image_size
        if not interpolate_pos_encoding and (height, width) != (size, size):
            raise ValueError(f"Input image size ({height}*{width}) doesn't match model ({size}*{size}).")

        hidden_states = pixel_values.to(self.conv1.weight.dtype)
        hidden_states = self.bn1(self.conv1(hidden_states)).relu()
        hidden_states = self.bn2(self.conv2(hidden_states)).relu()
        hidden_states = self.bn3(self.conv3(hidden_states)).relu()
        hidden_states = self.avgpool(hidden_states)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            hidden_states = stage(hidden_states)
        pooled, _ = self.attnpool(hidden_states, interpolate_pos_encoding, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states.flatten(2).transpose(1, 2), pooler_output=pooled
        )


class CyCLIPResNetTextModel(CLIPTextModel):
    """
    CLIP's text tower, initialised as in CLIP's own code. transformers swaps the standard deviations of the attention's
    projections, doubles that of the position embeddings and sets the biases of the perceptrons to zero.
    """

    _initialize_weights = CyCLIPResNetVisionModel._initialize_weights

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        factor = self.config.initializer_factor
        width_std = self.config.hidden_size**-0.5 * factor
        if isinstance(module, CLIPTextEmbeddings):
            init.normal_(module.position_embedding.weight, std=0.01 * factor)
        elif isinstance(module, CLIPAttention):
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                init.normal_(projection.weight, std=width_std)
            init.normal_(module.out_proj.weight, std=width_std * (2 * self.config.num_hidden_layers) ** -0.5)
        elif isinstance(module, CLIPMLP):
            _init_bias_as_torch(module.fc1)
            _init_bias_as_torch(module.fc2)


class CyCLIPResNetModel(CyCLIPModel):
    r"""
    [`CyCLIPModel`] with a ResNet vision tower. Text tower, features, loss and outputs are [`CyCLIPModel`]'s. Saved
    checkpoints carry the files they need, so that they open with `trust_remote_code=True` where this package is not
    installed.

    In training, batch normalisation makes an image's embedding depend on the other images of its batch:

    - With several processes, each normalises by its own images, as in the official code. To use the statistics of all
      processes, call `torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)` before training. Names and weights stay.
    - A gradient cache embeds chunk by chunk, so each chunk is normalised by itself. The gradient is exact for the batch
      normalised in this way, but it is not that of one large batch. Use chunks as large as memory allows.
    - A gradient cache and gradient checkpointing run each chunk twice, so the running statistics move twice towards the
      same values and forget about twice as fast. Training itself does not read them.

    Example:

    ```python
    >>> from transformers import pipeline
    >>> from modeling_cyclip import CyCLIPResNetConfig, CyCLIPResNetModel

    >>> model = CyCLIPResNetModel(CyCLIPResNetConfig())  # the paper's RN50, fresh
    >>> model.save_pretrained("rn50")  # save the processor beside it

    >>> classifier = pipeline("zero-shot-image-classification", model="rn50", trust_remote_code=True)
    ```
    """

    config: CyCLIPResNetConfig
    config_class = CyCLIPResNetConfig
    _no_split_modules = ("CLIPTextEmbeddings", "CLIPEncoderLayer", *CyCLIPResNetVisionModel._no_split_modules)

    def __init__(self, config: CyCLIPResNetConfig):
        # CLIPModel's own initialiser would build a vision transformer.
        super(CLIPModel, self).__init__(config)
        self.projection_dim = config.projection_dim
        self.text_embed_dim = config.text_config.hidden_size
        self.vision_embed_dim = config.vision_config.hidden_size
        self.text_model = CyCLIPResNetTextModel._from_config(config.text_config)
        self.vision_model = CyCLIPResNetVisionModel._from_config(config.vision_config)
        # This is the output projection of the attention pooling, which has a bias in CLIP's ResNets.
        self.visual_projection = nn.Linear(self.vision_embed_dim, self.projection_dim)
        self.text_projection = nn.Linear(self.text_embed_dim, self.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.post_init()

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, CyCLIPResNetModel):
            _init_bias_as_torch(module.visual_projection)


def _init_bias_as_torch(linear: nn.Linear):
    """Gives a linear layer PyTorch's default bias, as in CLIP's own code. transformers would zero it."""
    bound = linear.in_features**-0.5
    init.uniform_(linear.bias, -bound, bound)


# A saved checkpoint carries this file, so that it opens where this package is not installed.
CyCLIPResNetModel.register_for_auto_class("AutoModel")
