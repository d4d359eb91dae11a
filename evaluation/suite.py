"""The protocols by name, on evaluation sets as a checkpoint sees them."""

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from evaluation.embeddings import class_prompts
from evaluation.encoder import Encoder
from evaluation.evaluation_set import EvaluationSet
from evaluation.intervals import Measure
from evaluation.zero_shot import zero_shot


Figures = dict[str, Measure | float]


@dataclass(frozen=True)
class EmbeddedSet:
    r"""
    An evaluation set as one checkpoint sees it.

    Args:
        data ([`EvaluationSet`]):
            The set.
        image_features (`torch.Tensor` of shape `(num_images, dim)`):
            As the projection leaves them.
        image_embeds (`torch.Tensor` of shape `(num_images, dim)`):
            Unit-norm.
        class_embeds (`torch.Tensor` of shape `(num_classes, dim)`, *optional*):
            Unit-norm.
    """

    data: EvaluationSet
    image_features: Tensor
    image_embeds: Tensor
    class_embeds: Tensor | None


@dataclass(frozen=True)
class EmbeddedSets:
    """The measured set, its reference images and its shifts."""

    test: EmbeddedSet
    train: EmbeddedSet | None = None
    shifts: list[EmbeddedSet] = field(default_factory=list)


def embed(data: EvaluationSet, encoder: Encoder) -> EmbeddedSet | None:
    """All embeddings of a set. Every process must call; all but the main one get `None`."""
    image_features = encoder.images(data.dataset)
    prompt_features = None
    if data.class_names is not None:
        prompt_features = encoder.texts(class_prompts(data.class_names, data.templates))
    if image_features is None:
        return None
    class_embeds = None
    if prompt_features is not None:
        prompts = F.normalize(prompt_features, dim=-1).unflatten(0, (len(data.class_names), len(data.templates)))
        class_embeds = F.normalize(prompts.mean(dim=1), dim=-1)
    return EmbeddedSet(data, image_features, F.normalize(image_features, dim=-1), class_embeds)


def run_zero_shot(sets: EmbeddedSets) -> Figures:
    return zero_shot(sets.test.image_embeds, sets.test.class_embeds, sets.test.data.labels)


PROTOCOLS = {"zero_shot": run_zero_shot}
