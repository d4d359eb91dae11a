"""PyTorch CyCLIP model: CLIP with CyCLIP's loss."""

import contextlib
import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedConfig
from transformers.models.clip.modeling_clip import CLIPOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, cached_file, can_return_tuple, find_adapter_config_file

from .configuration_cyclip import CyCLIPConfig, terms_at
from .distributed import training_process_group
from .loss import CyCLIPLossOutput, cyclip_loss


@dataclass
class CyCLIPOutput(CLIPOutput):
    r"""
    Output of [`CyCLIPModel`]: a [`~transformers.models.clip.modeling_clip.CLIPOutput`] with the scale and the parts of
    the loss.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `return_loss` is `True`):
            CyCLIP's loss (paper, equation 4).
        logits_per_image (`torch.FloatTensor` of shape `(image_batch_size, text_batch_size)`, *optional*):
            Scaled image-text similarities. `None` in training mode, since the loss never builds this matrix.
        logits_per_text (`torch.FloatTensor` of shape `(text_batch_size, image_batch_size)`, *optional*):
            The transpose of `logits_per_image`. `None` in training mode.
        text_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            Unit-norm text embeddings, T in the paper.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            Unit-norm image embeddings, I in the paper.
        text_model_output (`BaseModelOutputWithPooling`):
            The output of the text tower.
        vision_model_output (`BaseModelOutputWithPooling`):
            The output of the vision tower.
        logit_scale (`torch.FloatTensor` of shape `()`):
            The multiplier of the cosines, already exponentiated.
        contrastive_loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `return_loss` is `True`):
            CLIP's contrastive term, in nats, without gradient.
        inmodal_cyclic_loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `return_loss` is `True`):
            The in-modal term before its weight, without gradient. With `return_all_parts=False` it is `None` where the loss
            does not need it.
        crossmodal_cyclic_loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `return_loss` is `True`):
            The cross-modal term before its weight, likewise.
        inmodal_contrastive_loss (`torch.FloatTensor` of shape `()`, *optional*):
            The in-modal contrastive term, without gradient. Only a batch with augmented views has this and the next two.
        augmented_image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`, *optional*):
            Unit-norm embeddings of the augmented images.
        augmented_text_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`, *optional*):
            Unit-norm embeddings of the augmented captions.
        cyclic_gradient_factor (`torch.FloatTensor` of shape `()`, *optional*):
            The factor, at most 1, by which `config.cyclic_max_gradient_share` has lowered both cyclic weights in this batch.
    """

    logit_scale: torch.FloatTensor | None = None
    contrastive_loss: torch.FloatTensor | None = None
    inmodal_cyclic_loss: torch.FloatTensor | None = None
    crossmodal_cyclic_loss: torch.FloatTensor | None = None
    inmodal_contrastive_loss: torch.FloatTensor | None = None
    augmented_image_embeds: torch.FloatTensor | None = None
    augmented_text_embeds: torch.FloatTensor | None = None
    cyclic_gradient_factor: torch.FloatTensor | None = None


# Arguments of `from_pretrained` that say where on the Hub.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# What torch.compile and DistributedDataParallel put before the names of a wrapped model's weights.
WRAPPERS = r"^(?:_orig_mod\.|module\.)+"


class CyCLIPModel(CLIPModel):
    r"""
    CLIP trained with cyclic consistency ([CyCLIP](https://huggingface.co/papers/2205.14459)). Only the loss differs from
    [`~transformers.CLIPModel`]: towers, weights and features are the same. The model therefore opens any CLIP
    checkpoint, and what it saves is a CLIP checkpoint.

    Example:

    ```python
    >>> from PIL import Image
    >>> from transformers import AutoProcessor
    >>> from modeling_cyclip import CyCLIPModel

    >>> model = CyCLIPModel.from_pretrained("openai/clip-vit-base-patch32")
    >>> processor = AutoProcessor.from_pretrained("openai/clip-vit-base-patch32")
    >>> images = [Image.open("cat.jpg"), Image.open("dog.jpg")]
    >>> inputs = processor(text=["a photo of a cat", "a photo of a dog"], images=images, padding=True, return_tensors="pt")

    >>> outputs = model(**inputs, return_loss=True)
    >>> outputs.loss, outputs.inmodal_cyclic_loss, outputs.crossmodal_cyclic_loss
    ```
    """

    config: CyCLIPConfig
    config_class = CyCLIPConfig

    # A contrastive loss is not a sum over samples, so the Trainer must not rescale it by their number.
    accepts_loss_kwargs = False

    def __init__(self, config: CyCLIPConfig | CLIPConfig):
        if type(config) is CLIPConfig:
            # `vars` holds the towers' configurations with their attention, but not the model's own attention.
            config = CyCLIPConfig(**vars(config), attn_implementation={"": config._attn_implementation})
        super().__init__(config)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args,
        config: PreTrainedConfig | str | os.PathLike | None = None,
        **kwargs,
    ) -> "CyCLIPModel":
        r"""
        Opens any CLIP checkpoint. A checkpoint whose `model_type` belongs to a subclass (`CyCLIPResNetModel`) is opened
        as that subclass. Every weight comes from the checkpoint: transformers would draw those that it lacks.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`, *optional*):
                A name on the Hub or a folder.
            config (`PreTrainedConfig`, `str` or `os.PathLike`, *optional*):
                A configuration instead of the checkpoint's.
            kwargs (*optional*):
                Arguments of [`~transformers.PreTrainedModel.from_pretrained`]. `dtype=torch.float32` opens a checkpoint
                for training whatever precision it was saved in. Weights of another shape than the configuration's are
                drawn only with `ignore_mismatched_sizes=True`.

        Returns:
            [`CyCLIPModel`] or an instance of a subclass.

        Raises:
            `ValueError`: a checkpoint of another kind of model, or one that lacks weights or has them in other shapes.
            `OSError`: no checkpoint.
        """
        name = pretrained_model_name_or_path
        if isinstance(config, PreTrainedConfig):
            model_type = config.model_type
        else:
            if name is not None and Path(name).is_file():
                raise ValueError(_how_to_convert(name, name))
            source = name if config is None else config
            config_dict, _ = PreTrainedConfig.get_config_dict(source, **kwargs)
            model_type = config_dict.get("model_type")
            if model_type is None and config is None:
                hub_arguments = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
                adapter_config = find_adapter_config_file(name, **hub_arguments)
                if adapter_config is not None:
                    return cls._open_adapter(name, adapter_config, hub_arguments, *model_args, **kwargs)
                if not config_dict:
                    _refuse_other_formats(name, hub_arguments)
        for subclass in cls.__subclasses__():
            if model_type == subclass.config_class.model_type != cls.config_class.model_type:
                return subclass.from_pretrained(name, *model_args, config=config, **kwargs)
        if model_type not in (cls.config_class.model_type, None):
            raise ValueError(
                f"{name} is a checkpoint of type {model_type}, which {cls.__name__} does not open. transformers' AutoModel "
                "opens it, and CyCLIPTrainer trains it as it is if it embeds images and texts."
            )

        source = "The state dict" if name is None else name
        output_loading_info = kwargs.pop("output_loading_info", False)
        kwargs["key_mapping"] = {WRAPPERS: "", **(kwargs.get("key_mapping") or {})}
        open_checkpoint = partial(super().from_pretrained, name, *model_args, config=config, output_loading_info=True)
        try:
            model, loading_info = open_checkpoint(**kwargs)
        except RuntimeError:
            # transformers' error does not say which weights have another shape.
            mismatched = sorted(open_checkpoint(**{**kwargs, "ignore_mismatched_sizes": True})[1]["mismatched_keys"])
            if not mismatched:
                raise
            weight, shape, expected = mismatched[0]
            raise ValueError(
                f"{source} has weights of other shapes than its configuration: {weight} is {tuple(shape)}, not "
                f"{tuple(expected)}, and {len(mismatched) - 1} others."
            ) from None
        refuse_missing(source, loading_info["missing_keys"])
        # transformers would put the wrappers' names back when it saves.
        model._weight_conversions = [
            conversion for conversion in model._weight_conversions if conversion.source_patterns != [WRAPPERS]
        ]
        return (model, loading_info) if output_loading_info else model

    @classmethod
    def _open_adapter(
        cls, name: str | os.PathLike, adapter_config: str, hub_arguments: dict[str, Any], *model_args, **kwargs
    ) -> "CyCLIPModel":
        """Opens the checkpoint of an adapter first: transformers would not say which weights that one lacks."""
        with open(adapter_config, encoding="utf-8") as file:
            base = json.load(file)["base_model_name_or_path"]
        options = {key: kwargs.pop(key) for key in ("adapter_name", "adapter_kwargs") if key in kwargs}
        for key in ("revision", "subfolder"):  # of the adapter
            kwargs.pop(key, None)
        opened = cls.from_pretrained(base, *model_args, **kwargs)
        model = opened[0] if kwargs.get("output_loading_info") else opened
        refuse_missing(name, model.load_adapter(name, **options, download_kwargs=hub_arguments).missing_keys)
        return opened

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs) -> None:
        r"""
        Saves the checkpoint. Others may read its weights as they may read any new file of the user.

        Args:
            save_directory (`str` or `os.PathLike`):
                The folder.
            is_main_process (`bool`, *optional*, defaults to `True`):
                Whether this process writes the files.
            kwargs (*optional*):
                Arguments of [`~transformers.PreTrainedModel.save_pretrained`].
        """
        super().save_pretrained(save_directory, is_main_process, **kwargs)
        if is_main_process:
            for path in Path(save_directory).glob("*.safetensors"):
                give_usual_permissions(path)

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings of the caption's tokens. FSDP asks every model for them, and CLIPModel names none."""
        return self.text_model.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        cyclic_weight_factor: float = 1.0,
        return_all_parts: bool = True,
        augmented_input_ids: torch.LongTensor | None = None,
        augmented_attention_mask: torch.Tensor | None = None,
        augmented_pixel_values: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CyCLIPOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Token ids of the captions.
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Preprocessed images.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                1 for tokens, 0 for padding.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Positions of the tokens, also of those of the augmented captions.
            return_loss (`bool`, *optional*):
                Whether to return the loss and its parts. In training mode under `torch.distributed`, the loss is that of
                the pairs of all processes. The average of the processes' gradients is then the gradient that one process
                with all the pairs would have.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to resize the position embeddings to the size of the images.
            cyclic_weight_factor (`float`, *optional*, defaults to 1.0):
                Factor of both cyclic weights of the configuration, and of the bound on their gradient. The Trainer warms
                them up by it.
            return_all_parts (`bool`, *optional*, defaults to `True`):
                Whether to compute also the parts that the loss does not need, as in [`cyclip_loss`].
            augmented_input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Token ids of the augmented captions, padded to the length of `input_ids`.
            augmented_attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                Attention mask of the augmented captions, if `attention_mask` is given.
            augmented_pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`, *optional*):
                The augmented images. With augmented views, the loss has its in-modal contrastive term. Both views go
                through the towers as one batch, so the towers' outputs hold the augmented views after the others.

        Returns:
            [`CyCLIPOutput`]: in training mode without `logits_per_image` and `logits_per_text`.

        Raises:
            `ValueError`: only some of the augmented inputs, or augmented inputs of other shapes than the inputs.
        """
        augmented = (augmented_input_ids, augmented_attention_mask, augmented_pixel_values)
        has_views = any(tensor is not None for tensor in augmented)
        if has_views:
            shapes, augmented_shapes = (
                [None if tensor is None else tuple(tensor.shape) for tensor in tensors]
                for tensors in ((input_ids, attention_mask, pixel_values), augmented)
            )
            if shapes != augmented_shapes:
                raise ValueError(
                    "`augmented_input_ids`, `augmented_attention_mask` and `augmented_pixel_values` must have the shapes "
                    f"of the inputs that they augment, {', '.join(map(str, shapes))}, got "
                    f"{', '.join(map(str, augmented_shapes))}."
                )
            pixel_values = torch.cat([pixel_values, augmented_pixel_values])
            input_ids = torch.cat([input_ids, augmented_input_ids])
            if attention_mask is not None:
                attention_mask = torch.cat([attention_mask, augmented_attention_mask])
            if position_ids is not None:
                position_ids = position_ids.expand(len(augmented_input_ids), -1).repeat(2, 1)
        vision_outputs = self.get_image_features(
            pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )
        text_outputs = self.get_text_features(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )
        # Normalised in the same steps as in CLIPModel, so that both models give the same bits.
        image_embeds, text_embeds = (
            features / features.pow(2).sum(dim=-1, keepdim=True).pow(0.5)
            for features in (vision_outputs.pooler_output, text_outputs.pooler_output)
        )
        logit_scale = self.logit_scale.exp()
        views = {}
        if has_views:
            image_embeds, views["augmented_image_embeds"] = image_embeds.chunk(2)
            text_embeds, views["augmented_text_embeds"] = text_embeds.chunk(2)

        logits_per_image = logits_per_text = None
        if not self.training:
            logits_per_text = text_embeds @ image_embeds.T.to(text_embeds.device) * logit_scale.to(text_embeds.device)
            logits_per_image = logits_per_text.T

        parts = {}
        if return_loss:
            parts = self.compute_loss(
                image_embeds,
                text_embeds,
                logit_scale,
                cyclic_weight_factor,
                return_all_parts=return_all_parts,
                **views,
            )._asdict()

        return CyCLIPOutput(
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
            logit_scale=logit_scale,
            **parts,
            **views,
        )

    def compute_loss(
        self,
        image_embeds: torch.FloatTensor,
        text_embeds: torch.FloatTensor,
        logit_scale: torch.FloatTensor,
        cyclic_weight_factor: float = 1.0,
        augmented_image_embeds: torch.FloatTensor | None = None,
        augmented_text_embeds: torch.FloatTensor | None = None,
        return_all_parts: bool = True,
    ) -> CyCLIPLossOutput:
        r"""
        The loss that `forward` returns, from given embeddings. The gradient cache uses it.

        Args:
            image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
                Unit-norm image embeddings.
            text_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
                Unit-norm text embeddings.
            logit_scale (`torch.FloatTensor` of shape `()`):
                The multiplier of the cosines, already exponentiated.
            cyclic_weight_factor (`float`, *optional*, defaults to 1.0):
                Factor of both cyclic weights of the configuration, and of the bound on their gradient.
            augmented_image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`, *optional*):
                Unit-norm embeddings of the augmented images.
            augmented_text_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`, *optional*):
                Unit-norm embeddings of the augmented captions.
            return_all_parts (`bool`, *optional*, defaults to `True`):
                Whether to compute also the parts that the loss does not need, as in [`cyclip_loss`].

        Returns:
            [`CyCLIPLossOutput`]
        """
        return cyclip_loss(
            image_embeds,
            text_embeds.to(image_embeds.device),
            logit_scale.to(image_embeds.device),
            **terms_at(self.config, cyclic_weight_factor),
            augmented_image_embeds=augmented_image_embeds,
            augmented_text_embeds=augmented_text_embeds,
            return_all_parts=return_all_parts,
            process_group=training_process_group() if self.training else None,
        )


def give_usual_permissions(path: str | os.PathLike) -> None:
    """
    Gives a new file the permissions that `open` would have given it. safetensors writes to a temporary file first, which
    only its owner may read.
    """
    umask = os.umask(0o077)  # there is no way to read it without setting it
    os.umask(umask)
    with contextlib.suppress(OSError):  # some file systems have no permissions
        os.chmod(path, 0o666 & ~umask)


def _refuse_other_formats(name: str | os.PathLike, hub_arguments: dict[str, Any]) -> None:
    """Raises a `ValueError` for weights as OpenCLIP or the official code write them, without a config.json."""
    if Path(name).is_dir():
        files = [
            path for pattern in ("open_clip_*.bin", "open_clip_*.safetensors") for path in Path(name).glob(pattern)
        ]
        files = files or sorted(Path(name).glob("epoch*.pt"), key=lambda path: path.stat().st_mtime)
        if files:
            raise ValueError(_how_to_convert(name, files[-1]))
    elif cached_file(name, "open_clip_config.json", _raise_exceptions_for_missing_entries=False, **hub_arguments):
        raise ValueError(
            f"{name} has the format of OpenCLIP. Download it, `hf download {name} --local-dir FOLDER`, and convert it, "
            "`cyclip convert FOLDER/open_clip_model.safetensors NEW_FOLDER`."
        )


def _how_to_convert(name: str | os.PathLike, file: str | os.PathLike) -> str:
    return (
        f"{name} is no checkpoint folder of transformers. Where it has the weights of a CLIP, `cyclip convert {file} "
        "NEW_FOLDER` makes one of it; give that folder then."
    )


def refuse_missing(source: str | os.PathLike, missing_keys: set[str], kind: str = "CLIP model") -> None:
    if missing := sorted(missing_keys):
        raise ValueError(
            f"{source} lacks weights of a {kind}, which would be random: {missing[0]} and {len(missing) - 1} others."
        )
