"""Pictures of a measured set, each as PNG and SVG: first which ones it has, then how each is drawn."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
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
BLUE, GREY, GREEN, RED = "#2a6fbb", "#8c8c8c", "#2e8b57", "#c0392b"

NUM_QUERIES = 5
NUM_NEAREST = 5


def draw_pictures(test: EmbeddedSet, folder: Path, seed: int) -> list[Path]:
    """
    Draws what the measured set allows, and returns the PNG files; SVG files lie beside them. With labels these are a
    confusion matrix, bars and a heat map by class; with captions a heat map of pairs; with either a contact sheet.
    """
    figures = {}
    setting = f"{short(Path(test.data.name).name, 60)}, {len(test.image_embeds):,} images"
    if test.labels is not None:
        names = test.data.class_names
        predictions = predict(test.image_embeds, test.class_embeds)
        figures["confusion_matrix"] = confusion_matrix(test.labels, predictions, names, setting)
        figures["class_accuracy"] = class_bars(test.labels, predictions, names, setting)
        figures["class_similarity"] = class_similarity(test, setting)
        images_of = {names[label]: (test.labels == label).nonzero()[:, 0].tolist() for label in test.labels.unique()}
        figures["contact_sheet_classes"] = contact_sheet(test, names, test.class_embeds, images_of, setting, seed)
    if test.caption_embeds is not None:
        captions = [caption for captions in test.data.captions for caption in captions]
        images_of = {}
        for row, own in enumerate(test.data.captions):
            for caption in own:
                images_of.setdefault(caption, []).append(row)
        figures["contact_sheet_captions"] = contact_sheet(
            test, captions, test.caption_embeds, images_of, setting, seed
        )
        rows = torch.tensor(_sample(len(test.image_embeds), 16, seed))
        names = [f"image {row}" for row in rows.tolist()]
        if test.labels is not None:
            labels = test.labels.cpu()[rows]
            by_class = labels.argsort(stable=True).tolist()
            names = [f"{names[index]}, {test.data.class_names[labels[index]]}" for index in by_class]
            rows = rows[by_class]
        similarities = test.image_embeds[rows] @ first_captions(test)[rows].T
        firsts = [test.data.captions[row][0] for row in rows.tolist()]
        title = f"images and their first captions\n{setting}"
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


def confusion_matrix(labels: Tensor, predictions: Tensor, class_names: Sequence[str], setting: str) -> Figure:
    """
    Shares of each class's images by predicted class, of the classes that have images. If these are more than `MAX_CLASSES`,
    those of the most frequent confusions are drawn, and where these are equally many, those of the class that most others
    are taken for. The last column holds the predictions that are none of those drawn.
    """
    counts = sklearn.metrics.confusion_matrix(labels.cpu(), predictions.cpu(), labels=range(len(class_names)))
    sizes = counts.sum(axis=1)
    occurring = sizes.nonzero()[0]
    wrong = counts - np.diag(counts.diagonal())
    pairs = np.argwhere(wrong)
    rows, columns = pairs.T
    order = np.lexsort((columns, -wrong.sum(axis=0)[columns], -wrong[rows, columns]))
    ranked = dict.fromkeys([*pairs[order].ravel(), *occurring])
    shown = np.sort([index for index in ranked if sizes[index]][:MAX_CLASSES])
    totals = counts[shown].sum(axis=1, keepdims=True)
    within = counts[np.ix_(shown, shown)]
    shares = 100 * np.hstack([within, totals - within.sum(axis=1, keepdims=True)]) / totals
    names = [class_names[index] for index in shown]
    title = _of_all("confusion", len(shown), len(occurring), "most confused")
    columns = [*names, "any other"]
    if not shares[:, -1].any():
        shares, columns = shares[:, :-1], names
    figure = _heat_map(
        shares, names, columns, f"{title}\n{setting}", "% of the class's images",
        said=lambda share: f"{share:.0f}" if share else "", cmap="Blues", vmin=0, vmax=100,
    )  # fmt: skip
    figure.axes[0].set(xlabel="predicted class", ylabel="class")
    return figure


def class_bars(labels: Tensor, predictions: Tensor, class_names: Sequence[str], setting: str) -> Figure:
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

    figure = Figure(figsize=(7, 1.8 + 0.24 * len(shown)), layout="constrained")
    axes = figure.subplots()
    positions = range(len(shown))
    bars = axes.barh(positions, 100 * accuracies[shown], color=BLUE)
    # On white, since the dashed line may run through it.
    on_white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8, bbox=on_white, zorder=3)
    axes.set_yticks(positions, [f"{short(class_names[index])} ({totals[index]:,})" for index in shown])
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.axvline(100 * right.mean(), color=GREY, linestyle="--", label=f"all images: {100 * right.mean():.1f} %")
    # Room for the number behind a bar of 100 %.
    axes.set(xlim=(0, 108), xticks=range(0, 101, 20), xlabel="top-1 accuracy (%); in brackets, images of the class")
    axes.set_title(f"{_of_all('accuracy by class', len(shown), len(order), 'best and worst')}\n{setting}", fontsize=11)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    # Below the bars: among them it would cover some.
    figure.legend(loc="outside lower center", frameon=False)
    return figure


def class_similarity(test: EmbeddedSet, setting: str) -> Figure:
    """Mean similarity of each class's images to each class, for the classes with most images."""
    sizes = torch.bincount(test.labels, minlength=len(test.class_embeds))
    shown = sizes.argsort(descending=True, stable=True)[:MAX_CLASSES]
    shown = shown[sizes[shown] > 0].sort().values
    means = torch.stack([test.image_embeds[test.labels == label].mean(dim=0) for label in shown])
    similarities = (means @ test.class_embeds[shown].T).float().cpu()
    names = [test.data.class_names[label] for label in shown.tolist()]
    title = f"images of a class (rows) and class names\n{setting}"
    return _heat_map(similarities, names, names, title, "cosine")


def _heat_map(
    values: Tensor | np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    unit: str,
    said: Callable[[float], str] = lambda cosine: f"{cosine:.2f}".replace("-0.00", "0.00"),
    **options,
) -> Figure:
    figure = Figure(figsize=(3.5 + 0.36 * len(columns), 2.5 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", **options)
    axes.set_xticks(range(len(columns)), [short(name) for name in columns], rotation=90)
    axes.set_yticks(range(len(rows)), [short(name) for name in rows])
    figure.suptitle(title, fontsize=11)
    figure.colorbar(image, ax=axes, label=unit, shrink=0.8)
    for row, column in np.ndindex(tuple(values.shape)):
        if text := said(float(values[row, column])):
            red, green, blue, _ = image.to_rgba(float(values[row, column]))
            colour = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "black"
            # Small enough for the five characters of a negative cosine.
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
    return figure


def contact_sheet(
    test: EmbeddedSet,
    texts: Sequence[str],
    text_embeds: Tensor,
    images_of: Mapping[str, Sequence[int]],
    setting: str,
    seed: int,
) -> Figure:
    """
    Nearest texts of sampled images on the left, nearest images of sampled texts on the right. `images_of` holds the images
    that belong to a text; texts are sampled among those that have any. What belongs together is green, and what does not
    has a dashed red frame.
    """
    # A text that many images have is shown once.
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        first.setdefault(text, row)
    texts, text_embeds = list(first), text_embeds[list(first.values())]
    belonging = {text: set(images) for text, images in images_of.items()}
    present = [index for index, text in enumerate(texts) if text in belonging]
    images = _sample(len(test.image_embeds), NUM_QUERIES, seed)
    queries = [present[index] for index in _sample(len(present), NUM_QUERIES, seed)]
    num_texts, num_images = (min(NUM_NEAREST, len(rows)) for rows in (texts, test.image_embeds))
    nearest_texts = nearest(test.image_embeds[images] @ text_embeds.T, num_texts).tolist()
    nearest_images = nearest(text_embeds[queries] @ test.image_embeds.T, num_images).tolist()

    num_rows = max(len(images), len(queries))
    figure = Figure(figsize=(7 + 1.3 * num_images, 1.1 + 1.3 * num_rows), layout="constrained")
    figure.suptitle(f"{setting}. What belongs together is green, what does not is dashed red.", fontsize=11)
    texts_side, images_side = figure.subfigures(1, 2, width_ratios=(4, 2 + num_images))
    grid = texts_side.add_gridspec(num_rows, 4)
    for row, (image, found) in enumerate(zip(images, nearest_texts, strict=True)):
        right = [image in belonging.get(texts[index], ()) for index in found]
        _show(texts_side.add_subplot(grid[row, 0]), test, image, right[0])
        axes = texts_side.add_subplot(grid[row, 1:])
        axes.set_axis_off()
        for line, index in enumerate(found):
            height = 1 - (line + 0.5) / len(found)
            colour, weight = (GREEN, "bold") if right[line] else ("black", "normal")
            label = short(texts[index].replace("\n", " "), 46)
            axes.text(0, height, label, color=colour, weight=weight, va="center", fontsize=9)
    grid = images_side.add_gridspec(num_rows, 1 + num_images, width_ratios=(2, *[1] * num_images))
    for row, (text, found) in enumerate(zip([texts[query] for query in queries], nearest_images, strict=True)):
        axes = images_side.add_subplot(grid[row, 0])
        axes.set_axis_off()
        # Lines so short that they end before the first image.
        axes.text(0, 0.5, textwrap.fill(short(text, 120), 27), va="center", fontsize=9)
        for column, image in enumerate(found, start=1):
            _show(images_side.add_subplot(grid[row, column]), test, image, image in belonging[text])
    texts_side.suptitle("images and their nearest texts", fontsize=11)
    images_side.suptitle("texts and their nearest images", fontsize=11)
    return figure


def _show(axes: Axes, test: EmbeddedSet, row: int, right: bool) -> None:
    image = load_image(test.data.dataset[row]["image"])
    image.thumbnail((96, 96))
    axes.imshow(image, aspect="equal")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=GREEN if right else RED, linewidth=3, linestyle="-" if right else "--")


def short(text: str, length: int = 28) -> str:
    """A label that fits into a picture."""
    # A dollar sign would start a formula.
    return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")


def _of_all(title: str, shown: int, all_of_them: int, which: str) -> str:
    return title if shown == all_of_them else f"{title}: the {shown} {which} of {all_of_them:,} classes"
