"""CyCLIP model configuration."""

import math
from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig


@strict
class CyCLIPConfig(CLIPConfig):
    r"""
    Configuration of a [`CyCLIPModel`]: a [`~transformers.CLIPConfig`] with the weights of the two cyclic consistency
    terms of [CyCLIP](https://huggingface.co/papers/2205.14459). `model_type` stays `"clip"`, so that a saved checkpoint
    opens wherever a CLIP checkpoint does.

    Args:
        inmodal_cyclic_weight (`float`, *optional*, defaults to 0.25):
            Weight of the in-modal term, λ1 in the paper. With both weights 0 the loss is CLIP's.
        crossmodal_cyclic_weight (`float`, *optional*, defaults to 0.25):
            Weight of the cross-modal term, λ2 in the paper.
        cyclic_reference_batch_size (`int`, *optional*):
            The batch size R that the two weights were chosen for. The paper's terms grow with the batch size N. If R is
            set, both weights are multiplied by R / N, so that they keep their meaning. `None` is the paper's loss.
        cyclic_max_gradient_share (`float`, *optional*):
            A bound on the pull of the two terms: their gradient at the embeddings is at most this share of the contrastive
            loss's, at every step. Both weights are lowered where it would be more. `None` is the paper's loss.
        kwargs (*optional*):
            Arguments of [`~transformers.CLIPConfig`], such as `text_config` and `vision_config`.

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
    cyclic_max_gradient_share: float | int | None = None

    def validate_cyclic_terms(self):
        """Part of `@strict`-powered validation."""
        check_cyclic_terms(
            self.inmodal_cyclic_weight,
            self.crossmodal_cyclic_weight,
            self.cyclic_reference_batch_size,
            self.cyclic_max_gradient_share,
        )

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        # Other tools read `architectures` to choose a class, and these weights are a CLIPModel's.
        if output.get("architectures") == ["CyCLIPModel"]:
            output["architectures"] = ["CLIPModel"]
        return output


@dataclass(frozen=True)
class CyclicTerms:
    r"""
    The cyclic terms of a model whose configuration says nothing of them, such as a [`~transformers.SiglipModel`]. They are
    those of a [`CyCLIPConfig`], but for the bound, which is that of `cyclip train`.

    Args:
        inmodal_cyclic_weight (`float`, *optional*, defaults to 0.25):
            Weight of the in-modal term, λ1 in the paper.
        crossmodal_cyclic_weight (`float`, *optional*, defaults to 0.25):
            Weight of the cross-modal term, λ2 in the paper. With both weights 0 the loss is the model's own contrastive one.
        cyclic_reference_batch_size (`int`, *optional*):
            The batch size R that the two weights were chosen for. If it is set, both are multiplied by R / N.
        cyclic_max_gradient_share (`float`, *optional*, defaults to 1.0):
            The terms' gradient at the embeddings is at most this share of the contrastive loss's. `None` is no bound.

    Raises:
        `ValueError`: a negative weight, a reference batch below 1, or a share that is not positive.
    """

    inmodal_cyclic_weight: float = 0.25
    crossmodal_cyclic_weight: float = 0.25
    cyclic_reference_batch_size: int | None = None
    cyclic_max_gradient_share: float | None = 1.0

    def __post_init__(self):
        check_cyclic_terms(
            self.inmodal_cyclic_weight,
            self.crossmodal_cyclic_weight,
            self.cyclic_reference_batch_size,
            self.cyclic_max_gradient_share,
        )


def terms_at(terms: CyCLIPConfig | CyclicTerms, factor: float) -> dict[str, Any]:
    """The arguments of [`cyclip_loss`] where both weights, and the bound on their gradient, are multiplied by `factor`."""
    share = terms.cyclic_max_gradient_share
    return {
        "inmodal_cyclic_weight": terms.inmodal_cyclic_weight * factor,
        "crossmodal_cyclic_weight": terms.crossmodal_cyclic_weight * factor,
        "cyclic_reference_batch_size": terms.cyclic_reference_batch_size,
        # During a warm-up the bound rises with the weights. Where they are zero there is nothing to bound.
        "cyclic_max_gradient_share": None if share is None else share * factor or None,
    }


def check_cyclic_terms(
    inmodal_cyclic_weight: float,
    crossmodal_cyclic_weight: float,
    cyclic_reference_batch_size: int | None,
    cyclic_max_gradient_share: float | None,
) -> None:
    """
    Raises a `ValueError` for a weight that is negative or not finite, for a reference batch below 1, and for a share that is
    not positive and finite.
    """
    weights = {"inmodal_cyclic_weight": inmodal_cyclic_weight, "crossmodal_cyclic_weight": crossmodal_cyclic_weight}
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"`{name}` must be a finite number of at least 0, got {weight}.")
    if cyclic_reference_batch_size is not None and cyclic_reference_batch_size < 1:
        raise ValueError(
            "`cyclic_reference_batch_size` must be a batch size of at least 1, or None for the paper's loss, got "
            f"{cyclic_reference_batch_size}."
        )
    share = cyclic_max_gradient_share
    if share is not None and not (math.isfinite(share) and share > 0):
        raise ValueError(
            "`cyclic_max_gradient_share` must be a positive number, such as 1, or None (on the command line "
            f"inf) for no bound, got {share}. Weights of 0 turn the terms off."
        )
