"""The protocols by name, on evaluation sets as a checkpoint sees them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .consistency import NEIGHBOURS, consistency
from .embeddings import class_prompts
from .encoder import Encoder
from .evaluation_set import EvaluationSet
from .geometry import (
    captioned_alignment_uniformity,
    center,
    clustering,
    cyclic_gaps,
    effective_rank,
    labelled_alignment_uniformity,
    modality_gap,
)
from .intervals import Measure
from .linear_probe import MIN_IMAGES_PER_CLASS, linear_probe, logistic_regression
from .retrieval import retrieval, same_class_retrieval, winoground
from .zero_shot import BaselineLine, effective_robustness, fine_coarse, matched_accuracy, zero_shot


Figures = dict[str, Measure | float]


@dataclass(frozen=True)
class EmbeddedSet:
    r"""
    An evaluation set as one checkpoint sees it, on the device that the protocols run on.

    Args:
        data ([`EvaluationSet`]):
            The set.
        image_features (`torch.Tensor` of shape `(num_images, dim)`):
            As the projection leaves them.
        image_embeds (`torch.Tensor` of shape `(num_images, dim)`):
            Unit-norm.
        labels (`torch.Tensor` of shape `(num_images,)`, *optional*):
            Classes of the images.
        class_embeds (`torch.Tensor` of shape `(num_classes, dim)`, *optional*):
            Unit-norm.
        caption_embeds (`torch.Tensor` of shape `(num_captions, dim)`, *optional*):
            Unit-norm, the captions of an image one after another.
        caption_images (`torch.Tensor` of shape `(num_captions,)`, *optional*):
            The image that each caption belongs to.
    """

    data: EvaluationSet
    image_features: Tensor
    image_embeds: Tensor
    labels: Tensor | None
    class_embeds: Tensor | None
    caption_embeds: Tensor | None
    caption_images: Tensor | None


@dataclass(frozen=True)
class EmbeddedSets:
    r"""
    What the protocols take.

    Args:
        test ([`EmbeddedSet`]):
            The measured set.
        train ([`EmbeddedSet`], *optional*):
            Reference images.
        shifts (`list[EmbeddedSet]`):
            Natural distribution shifts of the measured set.
        lines (`dict[str, BaselineLine]`):
            Baseline lines of shifted sets, by their names.
        seed (`int`):
            Seed of the linear probe and of k-means.
    """

    test: EmbeddedSet
    train: EmbeddedSet | None = None
    shifts: list[EmbeddedSet] = field(default_factory=list)
    lines: dict[str, BaselineLine] = field(default_factory=dict)
    seed: int = 0


def embed(data: EvaluationSet, encoder: Encoder) -> EmbeddedSet | None:
    """All embeddings of a set. Every process must call; all but the main one get `None`."""
    image_features = encoder.images(data.dataset)
    prompt_features = caption_features = None
    if data.class_names is not None:
        prompt_features = encoder.texts(class_prompts(data.class_names, data.templates))
    if data.captions is not None:
        caption_features = encoder.texts([caption for captions in data.captions for caption in captions])
    if image_features is None:
        return None

    device = encoder.state.device
    class_embeds = caption_embeds = caption_images = None
    if prompt_features is not None:
        prompts = F.normalize(prompt_features, dim=-1).unflatten(0, (len(data.class_names), len(data.templates)))
        class_embeds = F.normalize(prompts.mean(dim=1), dim=-1).to(device)
    if caption_features is not None:
        caption_embeds = F.normalize(caption_features, dim=-1).to(device)
        counts = torch.tensor([len(captions) for captions in data.captions])
        caption_images = torch.arange(len(counts)).repeat_interleave(counts).to(device)
    return EmbeddedSet(
        data=data,
        image_features=image_features.to(device),
        image_embeds=F.normalize(image_features, dim=-1).to(device),
        labels=None if data.labels is None else data.labels.to(device),
        class_embeds=class_embeds,
        caption_embeds=caption_embeds,
        caption_images=caption_images,
    )


def centered(sets: EmbeddedSets) -> EmbeddedSets:
    """All sets with the mean of the measured set's images, class prompts and captions removed from each of those."""
    test = sets.test

    means = {
        name: getattr(test, name).mean(dim=0)
        for name in ("image_embeds", "class_embeds", "caption_embeds")
        if getattr(test, name) is not None
    }

    def without_means(embedded: EmbeddedSet) -> EmbeddedSet:
        embeds = {name: getattr(embedded, name) for name in means}
        return replace(embedded, **{name: e if e is None else center(e, means[name]) for name, e in embeds.items()})

    return replace(
        sets,
        test=without_means(test),
        train=None if sets.train is None else without_means(sets.train),
        shifts=[without_means(shifted) for shifted in sets.shifts],
    )


def run_zero_shot(sets: EmbeddedSets) -> Figures:
    return zero_shot(sets.test.image_embeds, sets.test.class_embeds, sets.test.labels)


def run_shift(sets: EmbeddedSets) -> Figures:
    test, figures = sets.test, {}
    for shifted in sets.shifts:
        name, class_names = shifted.data.name, shifted.data.class_names
        measures = zero_shot(shifted.image_embeds, shifted.class_embeds, shifted.labels)
        base = matched_accuracy(
            test.image_embeds, test.class_embeds, test.labels, test.data.class_names, class_names, shifted.labels
        )
        figures |= {f"{name} {figure}": measure for figure, measure in measures.items()}
        figures[f"{name}: top1 without the shift, same classes"] = base
        figures[f"{name}: drop (points)"] = 100 * (base.value - measures["top1"].value)
        if (line := sets.lines.get(name)) is not None:
            accuracies = (100 * base.value, 100 * measures["top1"].value)
            figures[f"{name}: effective robustness (points)"] = effective_robustness(*accuracies, line)
    return figures


def run_consistency(sets: EmbeddedSets) -> Figures:
    test, train = sets.test, sets.train
    ks = [k for k in NEIGHBOURS if k <= len(train.labels)]
    return consistency(test.image_embeds, test.class_embeds, train.image_embeds, train.labels, ks)


def run_fine_coarse(sets: EmbeddedSets) -> Figures:
    test = sets.test
    superclasses = test.data.superclasses.to(test.labels.device)
    return fine_coarse(test.image_embeds, test.class_embeds, test.labels, superclasses)


def run_retrieval(sets: EmbeddedSets) -> Figures:
    return retrieval(sets.test.image_embeds, sets.test.caption_embeds, sets.test.caption_images)


def run_linear_probe(sets: EmbeddedSets) -> Figures:
    test, train = sets.test, sets.train
    data = (train.image_features, train.labels, test.image_features, test.labels)
    probes = {"official": linear_probe(*data, num_classes=len(test.class_embeds), seed=sets.seed)}
    if len(train.labels) >= MIN_IMAGES_PER_CLASS * len(train.labels.unique()):
        probes["logistic regression"] = logistic_regression(*data, seed=sets.seed)
    return {f"{probe} {name}": figure for probe, figures in probes.items() for name, figure in figures.items()}


def run_geometry(sets: EmbeddedSets) -> Figures:
    """On pairs of image and class where the set has labels, of image and first caption where it has captions."""
    test, figures = sets.test, {}
    if test.labels is not None:
        figures |= labelled_alignment_uniformity(test.image_embeds, test.class_embeds, test.labels)
        figures |= _pair_geometry(test.image_embeds, test.class_embeds[test.labels])
        figures["effective rank of class embeddings"] = effective_rank(test.class_embeds)
    if test.caption_embeds is not None:
        captions = first_captions(test)
        pairs = captioned_alignment_uniformity(test.image_embeds, captions) | _pair_geometry(
            test.image_embeds, captions
        )
        figures |= {f"captions: {name}": figure for name, figure in pairs.items()}
        figures["effective rank of caption embeddings"] = effective_rank(test.caption_embeds)
    figures["effective rank of image embeddings"] = effective_rank(test.image_embeds)
    return figures


def first_captions(embedded: EmbeddedSet) -> Tensor:
    """Embedding of each image's first caption, `(num_images, dim)`."""
    images = torch.arange(len(embedded.image_embeds), device=embedded.caption_images.device)
    return embedded.caption_embeds[torch.searchsorted(embedded.caption_images, images)]


def _pair_geometry(image_embeds: Tensor, text_embeds: Tensor) -> Figures:
    return {"modality_gap": modality_gap(image_embeds, text_embeds), **cyclic_gaps(image_embeds, text_embeds)}


def run_image_retrieval(sets: EmbeddedSets) -> Figures:
    return _in_each_space(sets.test, same_class_retrieval)


def run_clustering(sets: EmbeddedSets) -> Figures:
    return _in_each_space(sets.test, lambda embeds, labels: clustering(embeds, labels, sets.seed))


def _in_each_space(test: EmbeddedSet, protocol: Callable[[Tensor, Tensor], Figures]) -> Figures:
    """Among images, and among captions with their images' labels where the set has captions."""
    figures = {f"images: {name}": figure for name, figure in protocol(test.image_embeds, test.labels).items()}
    if test.caption_embeds is not None:
        captions = protocol(test.caption_embeds, test.labels[test.caption_images])
        figures |= {f"captions: {name}": figure for name, figure in captions.items()}
    return figures


def run_winoground(sets: EmbeddedSets) -> Figures:
    return winoground(*(embeds.unflatten(0, (-1, 2)) for embeds in (sets.test.image_embeds, sets.test.caption_embeds)))


@dataclass(frozen=True)
class Protocol:
    r"""
    Args:
        run (`Callable`):
            From [`EmbeddedSets`] to figures.
        needs (`tuple[str]`):
            What the data must have; `HINTS` says how to show where it is.
        centred (`bool`, *optional*, defaults to `True`):
            Whether removing the means can change anything.
    """

    run: Callable[[EmbeddedSets], Figures]
    needs: tuple[str, ...]
    centred: bool = True


HINTS = {
    "labels": "class labels (--label_column)",
    "repeats": "at least two images a class, on average (--label_column)",
    "train": "reference images (--train_split)",
    "train_classes": "reference images of at least two classes (--train_split)",
    "two_images": "at least two images",
    "shifts": "shifted sets (--shift_datasets, --shift_splits)",
    "superclasses": "superclasses (--coarse_column)",
    "captions": "captions (--caption_column)",
    "winoground": "the columns image_0, image_1, caption_0 and caption_1",
}

PROTOCOLS = {
    "zero_shot": Protocol(run_zero_shot, ("labels",)),
    "shift": Protocol(run_shift, ("labels", "shifts")),
    "consistency": Protocol(run_consistency, ("labels", "train")),
    "fine_coarse": Protocol(run_fine_coarse, ("labels", "superclasses")),
    "retrieval": Protocol(run_retrieval, ("captions",)),
    "linear_probe": Protocol(run_linear_probe, ("labels", "train", "train_classes"), centred=False),
    "geometry": Protocol(run_geometry, ("two_images",)),
    "image_retrieval": Protocol(run_image_retrieval, ("labels", "repeats")),
    "clustering": Protocol(run_clustering, ("labels", "repeats")),
    "winoground": Protocol(run_winoground, ("winoground",)),
}


def choose_protocols(
    tasks: list[str], test: EvaluationSet, train: EvaluationSet | None, shifts: list[EvaluationSet]
) -> dict[str, Protocol]:
    r"""
    The protocols asked for by name; for `all` those that the data allow.

    Raises:
        `ValueError`: a name that is no protocol, or one that needs what the data do not have, and how to say where it is.
    """
    if unknown := set(tasks) - PROTOCOLS.keys() - {"all"}:
        raise ValueError(f"There is no task {min(unknown)}; there are {', '.join(PROTOCOLS)}, and all.")
    has = {
        "labels": test.labels is not None,
        # Where each image is a class of its own, neither clusters nor images of the same class mean anything.
        "repeats": test.labels is not None and len(test.labels) >= 2 * len(test.labels.unique()),
        "train": train is not None,
        "train_classes": train is not None and train.labels is not None and len(train.labels.unique()) > 1,
        "two_images": len(test.dataset) > 1,
        "shifts": bool(shifts),
        "superclasses": test.superclasses is not None,
        "captions": test.captions is not None,
        "winoground": test.is_winoground,
    }
    allowed = {name: protocol for name, protocol in PROTOCOLS.items() if all(has[need] for need in protocol.needs)}
    if "all" in tasks:
        return allowed
    for task in tasks:
        if missing := [need for need in PROTOCOLS[task].needs if not has[need]]:
            raise ValueError(f"The task {task} needs {HINTS[missing[0]]}, which {test.name} does not have.")
    return {task: allowed[task] for task in tasks}
