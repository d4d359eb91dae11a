"""Makes a model's batch of rows, faster than open_clip's transform does (benchmarks/README.md, input pipeline)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, CLIPConfig, PreTrainedConfig, ProcessorMixin
from transformers.tokenization_utils_base import LARGE_INTEGER

from .images import load_image
from .tokenizer import CLIP_TYPES, check_tokenizer, padding_of, positions_of, tokenize


# torch's kernels for these are Pillow's filters, vectorised: they differ by rounding, at most one of 255 levels.
INTERPOLATION = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
CHANNELS = (1, 3, 4)
# Pixels that are copied at a time.
BAND = 2**20
PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorPil", "CLIPImageProcessorFast")


@dataclass
class CyCLIPDataCollator:
    r"""
    Tokenises the captions and processes the images, in the dataloader's workers.

    Args:
        processor ([`~transformers.ProcessorMixin`]):
            The tokenizer and the image processor of the model.
        max_length (`int`, *optional*):
            The number of tokens that captions are cut to, the end-of-text token among them. Defaults to the tokenizer's
            `model_max_length`. It must not exceed the model's `max_position_embeddings`.
        normalize (`bool`, *optional*, defaults to `True`):
            Whether batches hold normalised pixels. Otherwise they hold bytes, a quarter of the memory, where the image
            processor allows it, and [`~CyCLIPDataCollator.normalized`] makes pixel values of them on the device.
        padding (`str`, *optional*, defaults to `"longest"`):
            Whether captions are padded to the longest of a batch, or, with `"max_length"`, all to `max_length`, as SigLIP
            must have them.

    Raises:
        `ValueError`: a tokenizer without `model_max_length`, and no `max_length`.

    Example:

    ```python
    >>> collator = CyCLIPDataCollator(AutoProcessor.from_pretrained("openai/clip-vit-base-patch32"))
    >>> batch = collator([{"image": image, "caption": "a photo of a cat"}])
    >>> batch.keys()
    dict_keys(['input_ids', 'attention_mask', 'pixel_values'])
    ```
    """

    processor: ProcessorMixin
    max_length: int | None = None
    normalize: bool = True
    padding: str = "longest"

    def __post_init__(self):
        if self.max_length is None:
            self.max_length = self.processor.tokenizer.model_max_length
        # A tokenizer that has none gets a larger number from transformers.
        if self.max_length > LARGE_INTEGER:
            raise ValueError(
                "The tokenizer does not say how many tokens the model takes, so long captions would not be cut: set "
                "`processor.tokenizer.model_max_length` to the model's `config.text_config.max_position_embeddings`."
            )

    def check_model(self, config: PreTrainedConfig) -> None:
        """Raises a `ValueError` where a model with this configuration cannot take the captions or the images as they come out."""
        check_tokenizer(self.processor.tokenizer, config)
        positions = positions_of(config)
        if self.max_length > positions:
            raise ValueError(
                f"The collator cuts captions to {self.max_length} tokens, but the model has positions for {positions} only: "
                f"take `CyCLIPDataCollator(processor, max_length={positions})`."
            )
        if self.padding != padding_of(config):
            raise ValueError(
                f"The collator pads captions to `{self.padding}`, and the model was trained with another padding: take "
                f'`CyCLIPDataCollator(processor, padding="{padding_of(config)}")`.'
            )
        if config.model_type in CLIP_TYPES:
            check_image_processor(self.processor.image_processor, config)

    @property
    def min_image_size(self) -> int | None:
        """How small a JPEG may be decoded: [`~modeling_cyclip.data.data_collator.decoding_size`] of the image processor."""
        return decoding_size(self.processor.image_processor)

    def normalized(self, pixels: Tensor) -> Tensor:
        """The `pixel_values` of a batch that was made with `normalize=False`."""
        return normalize(self.processor.image_processor, pixels)

    def process_image(self, image: Image.Image | np.ndarray, stretch: bool = False) -> Tensor:
        """The part of `__call__` that is done to one RGB image: the smaller it is made early, the less memory a batch takes."""
        return process_image(self.processor.image_processor, image, stretch)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        r"""
        Args:
            features (`list[dict]`):
                Rows with the keys `image` (a `PIL.Image.Image`, a `{"bytes", "path"}` dictionary, a file name, an array of
                bytes, or the tensor that `process_image` made) and `caption` (a string, or a list of strings of which the first is taken).

        Returns:
            `dict`: `input_ids` and, if the tokenizer gives it, `attention_mask` of shape `(batch, sequence_length)`, and
            `pixel_values` of shape `(batch, num_channels, height, width)`.

        Raises:
            `ValueError`: a caption that is neither a string nor a list of strings.
        """
        captions = [_first_caption(feature["caption"]) for feature in features]
        pixels = torch.stack([self._processed(feature["image"]) for feature in features])
        return {
            **tokenize(self.processor.tokenizer, captions, self.max_length, self.padding),
            "pixel_values": self.normalized(pixels) if self.normalize else pixels,
        }

    def _processed(self, image: Any) -> Tensor:
        if isinstance(image, Tensor):
            return image
        return self.process_image(load_image(from_array(image), self.min_image_size))


def _first_caption(caption: str | Sequence[str]) -> str:
    try:
        first = caption if isinstance(caption, str) else caption[0]
    except (TypeError, LookupError):  # a number, an empty list, a dictionary
        first = None
    if not isinstance(first, str):
        raise ValueError(f"The column `caption` must hold strings, or lists of strings, got {caption!r}.")
    return first


def from_array(image: Any) -> Any:
    """
    Makes an image of an array, a tensor or nested lists of integers from 0 to 255, `(height, width)` with or without 1, 3 or
    4 channels before or behind. Whatever else comes stays. Raises a `ValueError` for other arrays.
    """
    if not isinstance(image, np.ndarray | Tensor | list):
        return image
    try:
        levels = np.asarray(image)
    except ValueError:  # rows of unequal length
        levels = np.empty(0)
    if levels.ndim == 3 and levels.shape[2] not in CHANNELS and levels.shape[0] in CHANNELS:
        levels = levels.transpose(1, 2, 0)
    has_shape = levels.size and (levels.ndim == 2 or (levels.ndim == 3 and levels.shape[2] in CHANNELS))
    if not has_shape or levels.dtype.kind not in "iu" or levels.min() < 0 or levels.max() > 255:
        raise ValueError(
            f"The column `image` holds arrays of {levels.dtype} of shape {levels.shape}: give whole numbers from 0 to 255 of "
            "shape (height, width) or (height, width, 3), or image files. Pixels are resized and normalised here."
        )
    levels = levels.astype(np.uint8)
    return Image.fromarray(levels[:, :, 0] if levels.ndim == 3 and levels.shape[2] == 1 else levels)


def decoding_size(image_processor: BaseImageProcessor) -> int | None:
    """
    The `min_size` of [`~modeling_cyclip.data.images.load_image`] that leaves the pixels as good as they were: twice the
    shortest edge that the processor resizes to, or `None` where it names no such size.

    A JPEG decoder shrinks by dropping frequencies, which is another filter than the processor's. At twice the target size,
    the processor still does the last halving, so its filter decides what is seen.
    """
    size = getattr(image_processor, "size", None) or {}
    target = size.get("shortest_edge") or max(size.get("height") or 0, size.get("width") or 0)
    return 2 * target if target and getattr(image_processor, "do_resize", False) else None


def process_image(
    image_processor: BaseImageProcessor, image: Image.Image | np.ndarray, stretch: bool = False
) -> Tensor:
    """
    What [`normalize`] needs of an RGB image, or of its bytes `(height, width, 3)`. A CLIP processor that resizes the shortest
    edge, crops the centre and normalises is followed to within one of 255 levels, up to the crop, `(num_channels, height,
    width)` of bytes. Any other processor is called, and its pixel values come out.

    With `stretch`, a processor that crops the middle resizes all of the image to the size of its crop instead.
    """
    if not _is_usual(image_processor):
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        options = {}
        if stretch and getattr(image_processor, "do_center_crop", False):
            size = {side: image_processor.crop_size[side] for side in ("height", "width")}
            options = {"do_center_crop": False, "size": size}
        return image_processor([image], return_tensors="pt", **options)["pixel_values"][0]
    return _resized_crop(image, image_processor, stretch)


def normalize(image_processor: BaseImageProcessor, processed: Tensor) -> Tensor:
    """The pixel values `(batch, num_channels, height, width)` of images from `process_image`."""
    if processed.dtype != torch.uint8:
        return processed
    # Rescaling is part of the normalisation: x * scale by (mean, std) is x by (mean, std) / scale.
    statistics = image_processor.image_mean, image_processor.image_std
    mean, std = (
        torch.tensor(values)[:, None, None]
        .div_(image_processor.rescale_factor)
        .to(processed.device, non_blocking=True)
        for values in statistics
    )
    return processed.float().sub_(mean).div_(std)


def check_image_processor(image_processor: BaseImageProcessor, config: CLIPConfig) -> None:
    """Raises a `ValueError` where the images that come out are not of the size that a model with this configuration takes."""
    size = config.vision_config.image_size
    height, width = process_image(image_processor, Image.new("RGB", (3, 2))).shape[-2:]
    if (height, width) != (size, size):
        raise ValueError(
            f"The image processor makes images of {width} x {height} pixels, the model takes {size} x {size}: set `size` and "
            "`crop_size` of the processor, or take the one that the model came with."
        )


def _is_usual(image_processor: BaseImageProcessor) -> bool:
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    if type(image_processor).__name__ not in PROCESSORS or not all(getattr(image_processor, step) for step in steps):
        return False
    size, crop = image_processor.size, image_processor.crop_size
    edge = size.get("shortest_edge")
    return (
        bool(edge)
        and not size.get("longest_edge")
        and max(crop["height"], crop["width"]) <= edge
        and image_processor.resample in INTERPOLATION
    )


def _resized_crop(image: Image.Image | np.ndarray, image_processor: BaseImageProcessor, stretch: bool) -> Tensor:
    edge, crop = image_processor.size["shortest_edge"], image_processor.crop_size
    levels = _levels(image) if isinstance(image, Image.Image) else image
    # A batch of one in channels last, which torch resizes without a copy that brings the channels in front.
    pixels = torch.from_numpy(levels)[None].permute(0, 3, 1, 2)
    # The longer side is rounded down, as in transformers.
    height, width = (int(edge * side / min(pixels.shape[2:])) for side in pixels.shape[2:])
    if stretch:
        height, width = crop["height"], crop["width"]
    if (height, width) != pixels.shape[2:]:
        mode = INTERPOLATION[image_processor.resample]
        pixels = F.interpolate(pixels, (height, width), mode=mode, antialias=True)
    top, left = (height - crop["height"]) // 2, (width - crop["width"]) // 2
    # A view would keep the whole image.
    return pixels[0, :, top : top + crop["height"], left : left + crop["width"]].contiguous()


def _levels(image: Image.Image) -> np.ndarray:
    """`np.array(image)`, which makes two more copies of the image on the way: a large one is copied in bands."""
    rows = max(1, BAND // image.width)
    if image.height <= rows:
        return np.array(image)
    levels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        levels[top:bottom] = image.crop((0, top, image.width, bottom))
    return levels


__all__ = ["CyCLIPDataCollator"]
