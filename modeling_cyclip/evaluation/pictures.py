"""Which pictures a measured set has, drawn from its embeddings."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL.Image import Image
from torch import Tensor

from ..data.images import load_image
from .plots import MAX_CLASSES, class_bars, confusion_matrix, contact_sheet, save, similarity_heat_map
from .ranking import nearest
from .suite import EmbeddedSet, first_captions
from .zero_shot import predict


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
    def opened(row: int) -> Image:
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
