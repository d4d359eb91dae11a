"""Consistency of image and text space (CyCLIP, section 5.1): do nearest neighbours and class names say the same?"""

from collections.abc import Sequence

from torch import Tensor

from .intervals import Measure
from .progress import progress_bar
from .ranking import majority_votes, nearest, similarity_chunks
from .zero_shot import predict


# Numbers of neighbours that the paper's script takes.
NEIGHBOURS = (1, 3, 5, 10, 30)


def consistency(
    image_embeds: Tensor,
    class_embeds: Tensor,
    reference_embeds: Tensor,
    reference_labels: Tensor,
    ks: Sequence[int] = NEIGHBOURS,
) -> dict[str, Measure]:
    r"""
    Share of the test images whose zero-shot label (text space) is the label of their k nearest reference images (image
    space). The right labels of the test images play no part.

    Args:
        image_embeds (`torch.Tensor` of shape `(num_images, dim)`):
            Unit-norm embeddings of the test images.
        class_embeds (`torch.Tensor` of shape `(num_classes, dim)`):
            Unit-norm class embeddings.
        reference_embeds (`torch.Tensor` of shape `(num_references, dim)`):
            Unit-norm embeddings of the reference images, usually the training images.
        reference_labels (`torch.Tensor` of shape `(num_references,)`):
            Their classes.
        ks (`Sequence[int]`, *optional*, defaults to `(1, 3, 5, 10, 30)`):
            Numbers of neighbours.

    Returns:
        `dict[str, Measure]`: `k=1`, `k=3`, ...

    Raises:
        `ValueError`: a k larger than the reference set.
    """
    predictions = predict(image_embeds, class_embeds)
    votes = neighbour_votes(image_embeds, reference_embeds, reference_labels, ks)
    return {f"k={k}": Measure((predictions == votes[k]).float()) for k in ks}


def neighbour_votes(
    image_embeds: Tensor, reference_embeds: Tensor, reference_labels: Tensor, ks: Sequence[int]
) -> dict[int, Tensor]:
    r"""
    The label that most of an image's k nearest reference images have, by cosine. Where several labels lead, k is lowered
    until one does. Among equally similar references the one of the lower index is the nearer.

    Args:
        image_embeds (`torch.Tensor` of shape `(num_images, dim)`):
            Unit-norm image embeddings.
        reference_embeds (`torch.Tensor` of shape `(num_references, dim)`):
            Unit-norm embeddings of the reference images.
        reference_labels (`torch.Tensor` of shape `(num_references,)`):
            Their classes.
        ks (`Sequence[int]`):
            Numbers of neighbours.

    Returns:
        `dict[int, torch.Tensor]`: for each k the labels, of shape `(num_images,)`.

    Raises:
        `ValueError`: a k below 1 or larger than the reference set.
    """
    if min(ks) < 1 or max(ks) > len(reference_embeds):
        raise ValueError(f"k must be between 1 and the {len(reference_embeds)} reference images, got {list(ks)}.")
    votes = {k: reference_labels.new_empty(len(image_embeds)) for k in ks}
    chunks = similarity_chunks(image_embeds, reference_embeds)
    for rows, similarities in progress_bar(chunks, "nearest reference images", unit=" chunks", delay=2):
        labels = reference_labels[nearest(similarities, max(ks))]
        for k, winners in majority_votes(labels, ks).items():
            votes[k][rows] = winners
    return votes
