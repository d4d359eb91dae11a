"""CyCLIP model configuration."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig


@strict
class CyCLIPConfig(CLIPConfig):
    r"""
    Configuration of a [`CyCLIPModel`]: a [`~transformers.CLIPConfig`] and the weights of the two cyclic consistency
    terms of [CyCLIP](https://huggingface.co/papers/2205.14459). `model_type` stays `"clip"`, so that what is saved
    opens wherever a CLIP checkpoint does.

    Args:
        inmodal_cyclic_weight (`float`, *optional*, defaults to 0.25):
            Weight of the in-modal term, λ1 in the paper. 0 together with `crossmodal_cyclic_weight=0` is CLIP.
        crossmodal_cyclic_weight (`float`, *optional*, defaults to 0.25):
            Weight of the cross-modal term, λ2 in the paper.
        cyclic_reference_batch_size (`int`, *optional*):
            The batch size R that the two weights were chosen for. The paper's terms grow with the batch size N; with
            R set, both are multiplied by R / N, so that the weights keep their meaning. `None` is the paper's loss.
        kwargs (*optional*):
            What [`~transformers.CLIPConfig`] takes, `text_config` and `vision_config` among it.

    Example:

    ```python
    >>> from modeling_cyclip import CyCLIPConfig, CyCLIPModel

    >>> config = CyCLIPConfig(vision_config={"hidden_size": 128, "num_attention_heads": 4}, inmodal_cyclic_weight=0.1)
    >>> model = CyCLIPModel(config)
    ```
    """

    inmodal_cyclic_weight: float | int = 0.25
    crossmodal_cyclic_weight: float | int = 0.25
    cyclic_reference_batch_size: int | None = None

    def validate_cyclic_terms(self):
        """Part of `@strict`-powered validation: [`check_cyclic_terms`]."""
        check_cyclic_terms(self.inmodal_cyclic_weight, self.crossmodal_cyclic_weight, self.cyclic_reference_batch_size)

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        # Tools outside transformers dispatch on `architectures`, and the weights are a CLIPModel's.
        if output.get("architectures") == ["CyCLIPModel"]:
            output["architectures"] = ["CLIPModel"]
        return output


def check_cyclic_terms(
    inmodal_cyclic_weight: float, crossmodal_cyclic_weight: float, cyclic_reference_batch_size: int | None
) -> None:
    r"""
    Raises:
        `ValueError`: a weight that is negative or not finite, a reference batch below 1.
    """
    for name, weight in (
        ("inmodal_cyclic_weight", inmodal_cyclic_weight),
        ("crossmodal_cyclic_weight", crossmodal_cyclic_weight),
    ):
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"`{name}` must be a finite number of at least 0, got {weight}.")
    if cyclic_reference_batch_size is not None and cyclic_reference_batch_size < 1:
        raise ValueError(
            "`cyclic_reference_batch_size` must be a batch size of at least 1, or None for the paper's loss, got "
            f"{cyclic_reference_batch_size}."
        )


__all__ = ["CyCLIPConfig"]
