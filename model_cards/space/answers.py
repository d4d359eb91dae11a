"""Computes what the page answers: zero-shot classes, nearest neighbours, whether the two agree, and what is missing."""

from collections.abc import Sequence

import torch
from torch import Tensor

from modeling_cyclip.evaluation.ranking import majority_votes


MAX_LABELS = 200


def split_labels(text: str) -> list[str]:
    """The labels that somebody typed, with commas or line breaks between, each once."""
    names = [name.strip() for name in text.replace("\n", ",").split(",")]
    return list(dict.fromkeys(filter(None, names)))


def missing(has_image: bool, names: Sequence[str], sentence: str) -> str | None:
    """What keeps the page from an answer, if anything does."""
    if not has_image:
        return "Drop an image first."
    if len(names) < 2:
        return "Type at least two labels, with commas between."
    if len(names) > MAX_LABELS:
        return f"These are {len(names):,} labels. Type at most {MAX_LABELS}."
    if "{}" not in sentence:
        return "The sentence needs {} where the label goes."
    return None


def zero_shot(
    names: Sequence[str],
    image_embed: Tensor,
    label_embeds: Tensor,
    logit_scale: float,
    logit_bias: float | None = None,
) -> dict[str, float]:
    """
    Each label's probability, the nearest label first, from the unit-norm embeddings `(dim,)` of an image and
    `(num_labels, dim)` of labels. With a bias, which comes of SigLIP's loss, it is that of the label by itself.
    """
    # By cosine, since large logits have one and the same sigmoid.
    rows, cosines = zip(*most_similar(image_embed, label_embeds, len(names)), strict=True)
    logits = logit_scale * torch.tensor(cosines)
    probabilities = logits.softmax(dim=0) if logit_bias is None else (logits + logit_bias).sigmoid()
    return dict(zip((names[row] for row in rows), probabilities.tolist(), strict=True))


def most_similar(query: Tensor, embeds: Tensor, count: int) -> list[tuple[int, float]]:
    """
    Rows and cosines of the `count` images that are most similar, the most similar first, or of all if there are fewer.
    All embeddings are of unit norm.
    """
    cosines, rows = (embeds @ query).sort(descending=True, stable=True)
    return list(zip(rows[:count].tolist(), cosines[:count].tolist(), strict=True))


def majority(classes: Sequence[str]) -> str:
    """The most frequent of the classes, nearest first. While several lead, the farthest neighbour loses its vote."""
    names = sorted(set(classes))
    labels = torch.tensor([[names.index(name) for name in classes]])
    return names[majority_votes(labels, [len(classes)])[len(classes)].item()]


def agree(label: str, neighbours_class: str, labels: Sequence[str]) -> bool | None:
    """Whether both answers are the same. `None` if the neighbours' class is none of the labels to choose from."""
    if _plain(neighbours_class) not in map(_plain, labels):
        return None
    return _plain(label) == _plain(neighbours_class)


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()
