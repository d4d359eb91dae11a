"""Pictures of a measured set, each as PNG and SVG: first which ones it has, then how each is drawn."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import sklearn.metrics
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..data.images import load_image
from .embeddings import EmbeddedSet, first_captions
from .ranking import nearest
from .zero_shot import predict


# Text stays text in SVG, so that it can be searched and files stay small.
matplotlib.rcParams["svg.fonttype"] = "none"

# More classes than this cannot be told apart in a picture: those that have most to show are drawn.
MAX_CLASSES = 30
BLUE, GREY, GREEN = "#2a6fbb", "#8c8c8c", "#2e8b57"

NUM_QUERIES = 5
NUM_NEAREST = 5


def draw_pictures(test: EmbeddedSet, folder: Path, seed: int) -> list[Path]:
    """
    Draws what the measured set allows, and returns the PNG files; SVG files lie beside them. With labels these are a
    confusion matrix, bars and a heat map by class; with captions a heat map of pairs; with either a contact sheet.
    """
    figures = {}
    if test.labels is not None:
        names = test.data.class_names
        predictions = predict(test.image_embeds, test.class_embeds)
        figures["confusion_matrix"] = confusion_matrix(test.labels, predictions, names)
        figures["class_accuracy"] = class_bars(test.labels, predictions, names)
        figures["class_similarity"] = class_similarity(test)
        figures["contact_sheet_classes"] = contact_sheet(
            test, names, test.class_embeds, lambda image, text: names[test.labels[image]] == text, seed
        )
    if test.caption_embeds is not None:
        captions = [caption for captions in test.data.captions for caption in captions]
        figures["contact_sheet_captions"] = contact_sheet(
            test, captions, test.caption_embeds, lambda image, text: text in test.data.captions[image], seed
        )
        rows = _sample(len(test.image_embeds), 16, seed)
        similarities = test.image_embeds[rows] @ first_captions(test)[rows].T
        names = [f"image {row}" for row in rows]
        firsts = [test.data.captions[row][0] for row in rows]
        title = "images and their first captions"
        figures["pair_similarity"] = _heat_map(similarities.float().cpu(), names, firsts, title, "cosine")
    return [save(figure, folder / name) for name, figure in figures.items()]


def _sample(size: int, number: int, seed: int) -> list[int]:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:number].sort().values.tolist()


def save(figure: Figure, path: Path) -> Path:
    """Writes `path` with the suffixes `.png` and `.svg` and returns the PNG's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=130, bbox_inches="tight", facecolor="white")
    return path.with_suffix(".png")


def confusion_matrix(labels: Tensor, predictions: Tensor, class_names: Sequence[str]) -> Figure:
    """
    Shares of each class's images by predicted class. If there are more than `MAX_CLASSES` classes, those that take part in
    most confusions are drawn.
    """
    num_classes = len(class_names)
    counts = sklearn.metrics.confusion_matrix(labels.cpu(), predictions.cpu(), labels=range(num_classes))
    wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    shown = np.sort(np.argsort(-wrong, kind="stable")[:MAX_CLASSES])
    shares = 100 * counts[np.ix_(shown, shown)] / np.maximum(counts[shown].sum(axis=1, keepdims=True), 1)
    names = [class_names[index] for index in shown]
    title = _of_all("confusion", len(shown), num_classes, "most confused")
    figure = _heat_map(shares, names, names, title, "% of the class's images", cmap="Blues", vmin=0, vmax=100)
    axes = figure.axes[0]
    axes.set(xlabel="predicted class", ylabel="class")
    if len(shown) <= 12:
        for row, column in np.ndindex(shares.shape):
            colour = "white" if shares[row, column] > 55 else "black"
            axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    return figure


def class_bars(labels: Tensor, predictions: Tensor, class_names: Sequence[str]) -> Figure:
    """
    Top-1 accuracy of each class that has images, best first. If there are more than `MAX_CLASSES` classes, the best and the
    worst are drawn.
    """
    labels, right = labels.cpu().numpy(), (labels == predictions).cpu().numpy()
    totals = np.bincount(labels, minlength=len(class_names))
    accuracies = np.bincount(labels, weights=right, minlength=len(class_names)) / np.maximum(totals, 1)
    order = [index for index in np.argsort(-accuracies, kind="stable") if totals[index] > 0]
    half = MAX_CLASSES // 2
    shown = order if len(order) <= MAX_CLASSES else [*order[:half], *order[-half:]]

    figure = Figure(figsize=(7, 1.2 + 0.24 * len(shown)))
    axes = figure.subplots()
    positions = range(len(shown))
    axes.barh(positions, 100 * accuracies[shown], color=BLUE)
    axes.set_yticks(positions, [f"{short(class_names[index])} ({totals[index]:,})" for index in shown])
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.axvline(100 * right.mean(), color=GREY, linestyle="--", label=f"all images: {100 * right.mean():.1f} %")
    axes.set(xlim=(0, 100), xlabel="top-1 accuracy (%); in brackets, images of the class")
    axes.set_title(_of_all("accuracy by class", len(shown), len(order), "best and worst"))
    axes.legend(loc="lower right", frameon=False)
    return figure


def class_similarity(test: EmbeddedSet) -> Figure:
    """Mean similarity of each class's images to each class, for the classes with most images."""
    sizes = torch.bincount(test.labels, minlength=len(test.class_embeds))
    shown = sizes.argsort(descending=True, stable=True)[:MAX_CLASSES]
    shown = shown[sizes[shown] > 0].sort().values
    means = torch.stack([test.image_embeds[test.labels == label].mean(dim=0) for label in shown])
    similarities = (means @ test.class_embeds[shown].T).float().cpu()
    names = [test.data.class_names[label] for label in shown.tolist()]
    return _heat_map(similarities, names, names, "images of a class (rows) and class names", "cosine")


def _heat_map(
    values: Tensor | np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str, unit: str, **options
) -> Figure:
    figure = Figure(figsize=(3.5 + 0.28 * len(columns), 2.5 + 0.28 * len(rows)))
    axes = figure.subplots()
    image = axes.imshow(values, **options)
    axes.set_xticks(range(len(columns)), [short(name) for name in columns], rotation=90)
    axes.set_yticks(range(len(rows)), [short(name) for name in rows])
    axes.set_title(title)
    figure.colorbar(image, ax=axes, label=unit, shrink=0.8)
    return figure


def contact_sheet(
    test: EmbeddedSet, texts: Sequence[str], text_embeds: Tensor, belongs: Callable[[int, str], bool], seed: int
) -> Figure:
    """
    Nearest texts of sampled images on the left, nearest images of sampled texts on the right. What belongs together is
    green.
    """
    # A text that many images have is shown once.
    first = {text: row for row, text in reversed(list(enumerate(texts)))}
    texts, text_embeds = list(first), text_embeds[list(first.values())]
    images = _sample(len(test.image_embeds), NUM_QUERIES, seed)
    queries = _sample(len(texts), NUM_QUERIES, seed)
    num_texts, num_images = (min(NUM_NEAREST, len(rows)) for rows in (texts, test.image_embeds))
    nearest_texts = nearest(test.image_embeds[images] @ text_embeds.T, num_texts).tolist()
    nearest_images = nearest(text_embeds[queries] @ test.image_embeds.T, num_images).tolist()

    num_rows = max(len(images), len(queries))
    figure = Figure(figsize=(7 + 1.3 * num_images, 0.6 + 1.3 * num_rows), layout="constrained")
    texts_side, images_side = figure.subfigures(1, 2, width_ratios=(4, 2 + num_images))
    grid = texts_side.add_gridspec(num_rows, 4)
    for row, (image, found) in enumerate(zip(images, nearest_texts, strict=True)):
        _show(texts_side.add_subplot(grid[row, 0]), test, image, right=False)
        axes = texts_side.add_subplot(grid[row, 1:])
        axes.set_axis_off()
        for line, text in enumerate(texts[index] for index in found):
            height = 1 - (line + 0.5) / len(found)
            colour = GREEN if belongs(image, text) else "black"
            axes.text(0, height, short(text, 45), color=colour, va="center", fontsize=10)
    grid = images_side.add_gridspec(num_rows, 2 + num_images)
    for row, (text, found) in enumerate(zip([texts[query] for query in queries], nearest_images, strict=True)):
        axes = images_side.add_subplot(grid[row, :2])
        axes.set_axis_off()
        axes.text(0, 0.5, textwrap.fill(short(text, 100), 24), va="center", fontsize=10)
        for column, image in enumerate(found, start=2):
            _show(images_side.add_subplot(grid[row, column]), test, image, belongs(image, text))
    texts_side.suptitle("nearest texts of images (right ones green)")
    images_side.suptitle("nearest images of texts (right ones framed)")
    return figure


def _show(axes: Axes, test: EmbeddedSet, row: int, right: bool) -> None:
    image = load_image(test.data.dataset[row]["image"])
    image.thumbnail((96, 96))
    axes.imshow(image, aspect="equal")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=GREEN if right else GREY, linewidth=3 if right else 0.5)


def short(text: str, length: int = 28) -> str:
    """A label that fits into a picture."""
    # A dollar sign would start a formula.
    return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")


def _of_all(title: str, shown: int, all_of_them: int, which: str) -> str:
    return title if shown == all_of_them else f"{title}: the {shown} {which} of {all_of_them:,} classes"
