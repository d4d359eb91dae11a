"""Pictures of a measured set, each as PNG and SVG: first which ones it has, then how each is drawn."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
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
NUM_PAIRS = 16
THUMBNAIL = 96


def draw_pictures(test: EmbeddedSet, folder: Path, seed: int) -> list[Path]:
    r"""
    Args:
        test ([`EmbeddedSet`]):
            The measured set.
        folder (`Path`):
            Where the files go.
        seed (`int`):
            Seed of the sample of queries.

    Returns:
        `list[Path]`: the PNG files; the SVG files lie beside them. With labels a confusion matrix, bars and a heat map by
        class; with captions a heat map of pairs; with either a contact sheet.
    """
    figures = {}
    if test.labels is not None:
        names = test.data.class_names
        predictions = predict(test.image_embeds, test.class_embeds)
        figures["confusion_matrix"] = confusion_matrix(test.labels, predictions, names)
        figures["class_accuracy"] = class_bars(test.labels, predictions, names)
        figures["class_similarity"] = _class_similarity(test)
        figures["contact_sheet_classes"] = _contact_sheet(
            test, names, test.class_embeds, lambda image, text: names[test.labels[image]] == text, seed
        )
    if test.caption_embeds is not None:
        captions = [caption for captions in test.data.captions for caption in captions]
        figures["contact_sheet_captions"] = _contact_sheet(
            test, captions, test.caption_embeds, lambda image, text: text in test.data.captions[image], seed
        )
        rows = _sample(len(test.image_embeds), NUM_PAIRS, seed)
        similarities = test.image_embeds[rows] @ first_captions(test)[rows].T
        names = [f"image {row}" for row in rows]
        firsts = [test.data.captions[row][0] for row in rows]
        figures["pair_similarity"] = similarity_heat_map(
            similarities, names, firsts, "images and their first captions"
        )
    return [save(figure, folder / name) for name, figure in figures.items()]


def _class_similarity(test: EmbeddedSet) -> Figure:
    """Mean similarity of each class's images to each class, for the classes of most images."""
    sizes = torch.bincount(test.labels, minlength=len(test.class_embeds))
    shown = sizes.argsort(descending=True, stable=True)[:MAX_CLASSES]
    shown = shown[sizes[shown] > 0].sort().values
    means = torch.stack([test.image_embeds[test.labels == label].mean(dim=0) for label in shown])
    names = [test.data.class_names[label] for label in shown.tolist()]
    return similarity_heat_map(
        means @ test.class_embeds[shown].T, names, names, "images of a class (rows) and class names"
    )


def _contact_sheet(
    test: EmbeddedSet, texts: Sequence[str], text_embeds: Tensor, belongs: Callable[[int, str], bool], seed: int
) -> Figure:
    def opened(row: int) -> Image.Image:
        image = load_image(test.data.dataset[row]["image"])
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        return image

    # A text that many images have is shown once.
    first = {text: row for row, text in reversed(list(enumerate(texts)))}
    texts, text_embeds = list(first), text_embeds[list(first.values())]
    images = _sample(len(test.image_embeds), NUM_QUERIES, seed)
    queries = _sample(len(texts), NUM_QUERIES, seed)
    num_texts, num_images = (min(NUM_NEAREST, len(rows)) for rows in (texts, test.image_embeds))
    nearest_texts = nearest(test.image_embeds[images] @ text_embeds.T, num_texts).tolist()
    nearest_images = nearest(text_embeds[queries] @ test.image_embeds.T, num_images).tolist()
    return contact_sheet(
        images=[opened(image) for image in images],
        texts=[
            [(texts[text], belongs(image, texts[text])) for text in row]
            for image, row in zip(images, nearest_texts, strict=True)
        ],
        queries=[texts[text] for text in queries],
        found=[
            [(opened(image), belongs(image, texts[text])) for image in row]
            for text, row in zip(queries, nearest_images, strict=True)
        ],
    )


def _sample(size: int, number: int, seed: int) -> list[int]:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:number].sort().values.tolist()


def save(figure: Figure, path: Path) -> Path:
    """Writes `path` with the suffixes `.png` and `.svg` and returns the PNG's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=130, bbox_inches="tight", facecolor="white")
    return path.with_suffix(".png")


def confusion_matrix(labels: Tensor, predictions: Tensor, class_names: Sequence[str]) -> Figure:
    r"""
    Shares of each class's images by predicted class. Of more than `MAX_CLASSES` classes those that take part in most
    confusions are drawn.

    Args:
        labels (`torch.Tensor` of shape `(num_images,)`):
            Right classes.
        predictions (`torch.Tensor` of shape `(num_images,)`):
            Predicted classes.
        class_names (`Sequence[str]`):
            Names of the classes.
    """
    num_classes = len(class_names)
    flat = (labels * num_classes + predictions).cpu().numpy()
    counts = np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)
    wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    shown = np.sort(np.argsort(-wrong, kind="stable")[:MAX_CLASSES])
    shares = 100 * counts[np.ix_(shown, shown)] / np.maximum(counts[shown].sum(axis=1, keepdims=True), 1)
    names = [short(class_names[index]) for index in shown]

    side = 2.5 + 0.28 * len(shown)
    figure = Figure(figsize=(side + 1, side))
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(shown)), names, rotation=90)
    axes.set_yticks(range(len(shown)), names)
    axes.set(xlabel="predicted class", ylabel="class")
    axes.set_title(_of_all("confusion", len(shown), num_classes, "most confused"))
    if len(shown) <= 12:
        for row, column in np.ndindex(shares.shape):
            colour = "white" if shares[row, column] > 55 else "black"
            axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="% of the class's images", shrink=0.8)
    return figure


def class_bars(labels: Tensor, predictions: Tensor, class_names: Sequence[str]) -> Figure:
    r"""
    Top-1 accuracy of each class that has images, best first. Of more than `MAX_CLASSES` the best and the worst are drawn.

    Args:
        labels, predictions, class_names:
            As in [`confusion_matrix`].
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


def similarity_heat_map(
    similarities: Tensor, row_names: Sequence[str], column_names: Sequence[str], title: str
) -> Figure:
    r"""
    Args:
        similarities (`torch.Tensor` of shape `(num_rows, num_columns)`):
            Cosines.
        row_names, column_names (`Sequence[str]`):
            What is compared.
        title (`str`):
            Title.
    """
    figure = Figure(figsize=(3.5 + 0.28 * len(column_names), 2.5 + 0.28 * len(row_names)))
    axes = figure.subplots()
    image = axes.imshow(similarities.float().cpu().numpy(), cmap="viridis")
    axes.set_xticks(range(len(column_names)), [short(name) for name in column_names], rotation=90)
    axes.set_yticks(range(len(row_names)), [short(name) for name in row_names])
    axes.set_title(title)
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.8)
    return figure


def contact_sheet(
    images: Sequence[Image.Image],
    texts: Sequence[Sequence[tuple[str, bool]]],
    queries: Sequence[str],
    found: Sequence[Sequence[tuple[Image.Image, bool]]],
) -> Figure:
    r"""
    Nearest texts of sampled images on the left, nearest images of sampled texts on the right; what is right is green.

    Args:
        images (`Sequence[Image.Image]`):
            Sampled images.
        texts (`Sequence[Sequence[tuple[str, bool]]]`):
            The texts nearest to each, nearest first, with whether they belong to it.
        queries (`Sequence[str]`):
            Sampled texts.
        found (`Sequence[Sequence[tuple[Image.Image, bool]]]`):
            The images nearest to each, nearest first, with whether they belong to it.
    """
    num_rows, num_found = max(len(images), len(queries)), len(found[0])
    figure = Figure(figsize=(7 + 1.3 * num_found, 0.6 + 1.3 * num_rows), layout="constrained")
    texts_side, images_side = figure.subfigures(1, 2, width_ratios=(4, 2 + num_found))
    grid = texts_side.add_gridspec(num_rows, 4)
    for row, image in enumerate(images):
        _show(texts_side.add_subplot(grid[row, 0]), image, right=False)
        axes = texts_side.add_subplot(grid[row, 1:])
        axes.set_axis_off()
        for line, (text, right) in enumerate(texts[row]):
            height = 1 - (line + 0.5) / len(texts[row])
            axes.text(0, height, short(text, 45), color=GREEN if right else "black", va="center", fontsize=10)
    grid = images_side.add_gridspec(num_rows, 2 + num_found)
    for row, (query, row_found) in enumerate(zip(queries, found, strict=True)):
        axes = images_side.add_subplot(grid[row, :2])
        axes.set_axis_off()
        axes.text(0, 0.5, textwrap.fill(short(query, 100), 24), va="center", fontsize=10)
        for column, (image, right) in enumerate(row_found, start=2):
            _show(images_side.add_subplot(grid[row, column]), image, right)
    texts_side.suptitle("nearest texts of images (right ones green)")
    images_side.suptitle("nearest images of texts (right ones framed)")
    return figure


def _show(axes: Axes, image: Image.Image, right: bool) -> None:
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
