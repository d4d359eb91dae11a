"""The protocols by name, each from an embedded set to figures."""

import logging
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from .consistency import NEIGHBOURS, consistency
from .content import MAX_SHARED, folds, image_digests, shared_images
from .embeddings import EmbeddedSet, first_captions
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
from .report import CENTRED
from .retrieval import retrieval, same_class_retrieval, winoground
from .zero_shot import effective_robustness, fine_coarse, matched_accuracy, zero_shot


logger = logging.getLogger(__name__)

Figures = dict[str, Measure | float]

# What one protocol may meet in data or on a device. The other protocols go on.
FAILURES = (ValueError, RuntimeError, MemoryError)


def run_shift(test: EmbeddedSet) -> Figures:
    figures = {}
    for shifted in test.shifts:
        name, class_names = shifted.data.name, shifted.data.class_names
        measures = zero_shot(shifted.image_embeds, shifted.class_embeds, shifted.labels)
        base = matched_accuracy(
            test.image_embeds, test.class_embeds, test.labels, test.data.class_names, class_names, shifted.labels
        )
        figures |= {f"{name} {figure}": measure for figure, measure in measures.items()}
        figures[f"{name}: top1 without the shift, same classes"] = base
        figures[f"{name}: drop (points)"] = 100 * (base.value - measures["top1"].value)
        if (line := shifted.data.baseline_line) is not None:
            accuracies = (100 * base.value, 100 * measures["top1"].value)
            figures[f"{name}: effective robustness (points)"] = effective_robustness(*accuracies, line)
    return figures


def run_consistency(test: EmbeddedSet) -> Figures:
    if test.train is None:
        return _over_folds(test, run_consistency)
    train = test.train
    ks = [k for k in NEIGHBOURS if k <= len(train.labels)]
    return consistency(test.image_embeds, test.class_embeds, train.image_embeds, train.labels, ks)


def run_fine_coarse(test: EmbeddedSet) -> Figures:
    superclasses = test.data.superclasses.to(test.labels.device)
    return fine_coarse(test.image_embeds, test.class_embeds, test.labels, superclasses)


def run_linear_probe(test: EmbeddedSet) -> Figures:
    if test.train is None:
        return _over_folds(test, run_linear_probe)
    train = test.train
    data = (train.image_features, train.labels, test.image_features, test.labels)
    probes = {"official": linear_probe(*data, num_classes=len(test.class_embeds), seed=test.seed)}
    if len(train.labels) >= MIN_IMAGES_PER_CLASS * len(train.labels.unique()):
        probes["logistic regression"] = logistic_regression(*data, seed=test.seed)
    return {f"{probe} {name}": figure for probe, figures in probes.items() for name, figure in figures.items()}


def _over_folds(test: EmbeddedSet, run: Callable[[EmbeddedSet], Figures]) -> Figures:
    """
    Every fold measured with the images of the other ones as reference images. Means over test items are taken over the
    items of all folds, other figures are medians over the folds. What some fold cannot give is left out.
    """
    fold = folds(image_digests(test.data.dataset), test.labels, test.data.num_folds, test.seed).to(test.labels.device)
    rows = [(fold == number).nonzero()[:, 0] for number in range(test.data.num_folds)]
    found = [
        run(replace(_rows_of(test, own), train=_rows_of(test, (fold != number).nonzero()[:, 0])))
        for number, own in enumerate(rows)
    ]
    order = torch.cat(rows).argsort().cpu()

    def joined(parts: list[Measure | float]) -> Measure | float:
        if not isinstance(parts[0], Measure):
            return statistics.median(parts)
        scores = torch.cat([part.scores.cpu() for part in parts])[order]
        # The classes of the items are their labels wherever a mean over classes is taken.
        return Measure(scores, None if parts[0].classes is None else test.labels.cpu(), parts[0].chance)

    names = [name for name in found[0] if all(name in figures for figures in found)]
    return {name: joined([figures[name] for figures in found]) for name in names}


def _rows_of(test: EmbeddedSet, rows: Tensor) -> EmbeddedSet:
    kept = {name: getattr(test, name)[rows] for name in ("image_features", "image_embeds", "labels")}
    return replace(test, **kept, caption_embeds=None, caption_images=None)


def run_geometry(test: EmbeddedSet) -> Figures:
    """With labels on the pairs of image and class, with captions on the pairs of image and first caption."""
    figures = {}
    if test.labels is not None:
        figures |= labelled_alignment_uniformity(test.image_embeds, test.class_embeds, test.labels)
        figures |= _pair_geometry(test.image_embeds, test.class_embeds[test.labels])
        figures["effective rank of class embeddings"] = effective_rank(test.class_embeds)
    if test.caption_embeds is not None:
        captions = first_captions(test)
        alignment = captioned_alignment_uniformity(test.image_embeds, captions)
        pairs = {**alignment, **_pair_geometry(test.image_embeds, captions)}
        figures |= {f"captions: {name}": figure for name, figure in pairs.items()}
        figures["effective rank of caption embeddings"] = effective_rank(test.caption_embeds)
    figures["effective rank of image embeddings"] = effective_rank(test.image_embeds)
    return figures


def _pair_geometry(image_embeds: Tensor, text_embeds: Tensor) -> Figures:
    return {"modality_gap": modality_gap(image_embeds, text_embeds), **cyclic_gaps(image_embeds, text_embeds)}


def _in_each_space(test: EmbeddedSet, protocol: Callable[[Tensor, Tensor], Figures]) -> Figures:
    """Figures of the images, and of the captions where there are any, which have the labels of their images."""
    figures = {f"images: {name}": figure for name, figure in protocol(test.image_embeds, test.labels).items()}
    if test.caption_embeds is not None:
        captions = protocol(test.caption_embeds, test.labels[test.caption_images])
        figures |= {f"captions: {name}": figure for name, figure in captions.items()}
    return figures


def run_winoground(test: EmbeddedSet) -> Figures:
    return winoground(*(embeds.unflatten(0, (-1, 2)) for embeds in (test.image_embeds, test.caption_embeds)))


@dataclass(frozen=True)
class Protocol:
    """How a protocol runs on the measured set, and which of `NEEDS` the data must meet."""

    run: Callable[[EmbeddedSet], Figures]
    needs: tuple[str, ...]
    centred: bool = True  # whether removing the means can change anything


def _reference_labels(test: EvaluationSet) -> Tensor | None:
    if test.num_folds is not None:
        return test.labels
    return None if test.train is None else test.train.labels


# What protocols need, in the words of an error message, and whether a set has it.
NEEDS: dict[str, tuple[str, Callable[[EvaluationSet], bool]]] = {
    "labels": ("class labels (--label_column)", lambda test: test.labels is not None),
    # Where each image is a class of its own, neither clusters nor images of the same class mean anything.
    "repeats": (
        "at least two images a class, on average (--label_column)",
        lambda test: test.labels is not None and len(test.labels) >= 2 * len(test.labels.unique()),
    ),
    "train": (
        "reference images (--train_split, or --cross_validate)",
        lambda test: test.train is not None or test.num_folds is not None,
    ),
    "train_classes": (
        "reference images of at least two classes (--train_split, or --cross_validate)",
        lambda test: (labels := _reference_labels(test)) is not None and len(labels.unique()) > 1,
    ),
    "two_images": ("at least two images", lambda test: len(test.dataset) > 1),
    "shifts": ("shifted sets (--shift_datasets, --shift_splits)", lambda test: bool(test.shifts)),
    "superclasses": ("superclasses (--coarse_column)", lambda test: test.superclasses is not None),
    "captions": ("captions (--caption_column)", lambda test: test.captions is not None),
    "winoground": ("the columns image_0, image_1, caption_0 and caption_1", lambda test: test.is_winoground),
}

PROTOCOLS = {
    "zero_shot": Protocol(lambda test: zero_shot(test.image_embeds, test.class_embeds, test.labels), ("labels",)),
    "shift": Protocol(run_shift, ("labels", "shifts")),
    "consistency": Protocol(run_consistency, ("labels", "train")),
    "fine_coarse": Protocol(run_fine_coarse, ("labels", "superclasses")),
    "retrieval": Protocol(
        lambda test: retrieval(test.image_embeds, test.caption_embeds, test.caption_images), ("captions",)
    ),
    "linear_probe": Protocol(run_linear_probe, ("labels", "train", "train_classes"), centred=False),
    "geometry": Protocol(run_geometry, ("two_images",)),
    "image_retrieval": Protocol(lambda test: _in_each_space(test, same_class_retrieval), ("labels", "repeats")),
    "clustering": Protocol(
        lambda test: _in_each_space(test, partial(clustering, seed=test.seed)), ("labels", "repeats")
    ),
    "winoground": Protocol(run_winoground, ("winoground",)),
}


def choose_protocols(
    tasks: list[str], test: EvaluationSet, failed: dict[str, str] | None = None
) -> dict[str, Protocol]:
    r"""
    The protocols asked for by name; for `all` those that the data allow.

    Args:
        tasks (`list[str]`):
            Names of protocols, or `all`.
        test ([`EvaluationSet`]):
            The set that is measured.
        failed (`dict[str, str]`, *optional*):
            Where given, protocols that faulty data make impossible are written to it with the reason, and left out.

    Returns:
        `dict[str, Protocol]`

    Raises:
        `ValueError`: no such protocol, or one that needs what the data do not have; faulty data, without `failed` or where
        no protocol is left.
    """
    if unknown := set(tasks) - PROTOCOLS.keys() - {"all"}:
        raise ValueError(f"There is no task {min(unknown)}; there are {', '.join(PROTOCOLS)}, and all.")
    missing = {
        name: [need for need in protocol.needs if not NEEDS[need][1](test)] for name, protocol in PROTOCOLS.items()
    }
    if "all" in tasks:
        tasks = [name for name, needs in missing.items() if set(needs) <= test.problems.keys()]
    chosen = []
    for task in tasks:
        if not missing[task]:
            chosen.append(task)
        elif (need := missing[task][0]) not in test.problems:
            raise ValueError(f"The task {task} needs {NEEDS[need][0]}, which {test.name} does not have.")
        elif failed is None or len(tasks) == 1:
            raise ValueError(test.problems[need])
        else:
            failed[task] = test.problems[need]
    if not chosen:
        raise ValueError("; ".join(f"{task}: {reason}" for task, reason in (failed or {}).items()))
    return {task: PROTOCOLS[task] for task in chosen}


def with_checked_references(test: EvaluationSet, protocols: dict[str, Protocol]) -> EvaluationSet:
    """
    The set as the protocols need it: without reference images that none of them takes, else with the number of images that
    it shares with these. Raises a `ValueError` for many: each would be its own neighbour, and the probe would know it.
    """
    if test.train is None or not any("train" in protocol.needs for protocol in protocols.values()):
        return replace(test, train=None)
    shared, looked_for = shared_images(test.dataset, test.train.dataset)
    told = (
        f"{shared:,} of {looked_for:,} test images of {test.name} are among the reference images of {test.train.name}"
    )
    if shared > MAX_SHARED * looked_for:
        raise ValueError(
            f"{told}, so that consistency and linear_probe would mean nothing. Take another --train_split, or "
            "--cross_validate 5 in its place."
        )
    if shared:
        logger.warning(f"{told}.")
    return replace(test, shared=(shared, looked_for))


def measure(
    embedded: EmbeddedSet, protocols: dict[str, Protocol], center: bool, failed: dict[str, str] | None = None
) -> dict[str, Figures]:
    """
    Figures by task, and by `task, centred` where asked for. Where `failed` is given, a task that fails is written to it
    with the reason, and the others go on.
    """
    runs = [(name, protocol, embedded) for name, protocol in protocols.items()]
    if center:
        without_means = centered(embedded)
        runs += [(f"{name}{CENTRED}", one, without_means) for name, one in protocols.items() if one.centred]
    results = {}
    for name, protocol, data in runs:
        try:
            results[name] = protocol.run(data)
        except FAILURES as error:
            if failed is None:
                raise
            failed[name] = " ".join(str(error).split())
    return results


def centered(embedded: EmbeddedSet) -> EmbeddedSet:
    """All sets, with the means of the measured set's images, class prompts and captions removed from each of those."""
    kinds = ("image_embeds", "class_embeds", "caption_embeds")
    means = {kind: e.mean(dim=0) for kind in kinds if (e := getattr(embedded, kind)) is not None}

    def without_means(part: EmbeddedSet) -> EmbeddedSet:
        embeds = {kind: center(e, mean) for kind, mean in means.items() if (e := getattr(part, kind)) is not None}
        train = None if part.train is None else without_means(part.train)
        return replace(part, **embeds, train=train, shifts=[without_means(shift) for shift in part.shifts])

    return without_means(embedded)
