"""From rows of a dataset to the batch a CLIP model reads."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import ProcessorMixin

from .images import load_image
from .pixels import decoding_size, pixel_values


@dataclass
class CyCLIPDataCollator:
    r"""
    Tokenises and processes the images in the dataloader's workers.

    Args:
        processor ([`~transformers.CLIPProcessor`]):
            The tokenizer and the image processor of the model.
        max_length (`int`, *optional*):
            Tokens a caption, longer ones are cut (the end-of-text token stays). Defaults to the tokenizer's
            `model_max_length`, which must not exceed the model's `max_position_embeddings`.

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

    @property
    def min_image_size(self) -> int | None:
        """How small a JPEG may be decoded: [`~modeling_cyclip.pixels.decoding_size`] of the image processor."""
        return decoding_size(self.processor.image_processor)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        r"""
        Args:
            features (`list[dict]`):
                Rows with the keys `image` (a `PIL.Image.Image`, a `{"bytes", "path"}` dictionary or a file name) and
                `caption` (a string, or a list of strings of which the first is taken).

        Returns:
            `dict`: `input_ids` and `attention_mask` of shape `(batch, sequence_length)`, padded to the longest caption,
            and `pixel_values` of shape `(batch, num_channels, height, width)`.
        """
        captions = [feature["caption"] for feature in features]
        text_inputs = self.processor.tokenizer(
            [caption if isinstance(caption, str) else caption[0] for caption in captions],
            padding="longest",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        images = [load_image(feature["image"], self.min_image_size) for feature in features]
        return {
            "input_ids": text_inputs["input_ids"],
            "attention_mask": text_inputs["attention_mask"],
            "pixel_values": pixel_values(self.processor.image_processor, images),
        }


__all__ = ["CyCLIPDataCollator"]
