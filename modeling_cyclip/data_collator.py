"""From rows of a dataset to the batch a CLIP model reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import ProcessorMixin
from transformers.tokenization_utils_base import LARGE_INTEGER

from .images import load_image
from .pixels import decoding_size, pixel_values


@dataclass
class CyCLIPDataCollator:
    r"""
    Tokenises and processes the images in the dataloader's workers.

    Args:
        processor ([`~transformers.CLIPProcessor`]):
            The tokenizer and the image processor of the model. Captions are cut to the tokenizer's `model_max_length`
            tokens, the end-of-text token among them; it must not exceed the model's `max_position_embeddings`.

    Raises:
        `ValueError`: a tokenizer without `model_max_length`.

    Example:

    ```python
    >>> collator = CyCLIPDataCollator(AutoProcessor.from_pretrained("openai/clip-vit-base-patch32"))
    >>> batch = collator([{"image": image, "caption": "a photo of a cat"}])
    >>> batch.keys()
    dict_keys(['input_ids', 'attention_mask', 'pixel_values'])
    ```
    """

    processor: ProcessorMixin

    def __post_init__(self):
        # What transformers gives a tokenizer that has none is larger.
        if self.processor.tokenizer.model_max_length > LARGE_INTEGER:
            raise ValueError(
                "The tokenizer does not say how many tokens the model takes, so long captions would not be cut: set "
                "`processor.tokenizer.model_max_length` to the model's `config.text_config.max_position_embeddings`."
            )

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

        Raises:
            `ValueError`: a caption that is neither a string nor a list of strings.
        """
        text_inputs = self.processor.tokenizer(
            [_first_caption(feature["caption"]) for feature in features],
            padding="longest",
            truncation=True,
            return_tensors="pt",
        )
        images = [load_image(feature["image"], self.min_image_size) for feature in features]
        return {
            "input_ids": text_inputs["input_ids"],
            "attention_mask": text_inputs["attention_mask"],
            "pixel_values": pixel_values(self.processor.image_processor, images),
        }


def _first_caption(caption: str | Sequence[str]) -> str:
    try:
        first = caption if isinstance(caption, str) else caption[0]
    except (TypeError, LookupError):  # a number, an empty list, a dictionary
        first = None
    if not isinstance(first, str):
        raise ValueError(f"The column `caption` must hold strings, or lists of strings, got {caption!r}.")
    return first


__all__ = ["CyCLIPDataCollator"]
