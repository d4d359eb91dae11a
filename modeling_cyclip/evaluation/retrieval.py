"""
Retrieval between images and captions (the test protocol of Karpathy and Fei-Fei, 2015), between two images and two captions
of the same words (Winoground; Thrush et al., 2022, section 3), and inside one modality.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from .intervals import Measure
from .progress import progress_bar
from .ranking import rank_of, similarity_chunks


def retrieval(
    image_embeds: Tensor, caption_embeds: Tensor, caption_images: Tensor, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, Measure]:
    r"""
    Image to text: one of the image's own captions is among the k most similar of all captions. Text to image: the
    caption's image is among the k most similar images.

    Args:
        image_embeds (`torch.Tensor` of shape `(num_images, dim)`):
            Unit-norm image embeddings.
        caption_embeds (`torch.Tensor` of shape `(num_captions, dim)`):
            Unit-norm caption embeddings, at least one for each image.
        caption_images (`torch.Tensor` of shape `(num_captions,)`):
            The image that each caption belongs to.
        ks (`Sequence[int]`, *optional*, defaults to `(1, 5, 10)`):
            Numbers of candidates looked at.

    Returns:
        `dict[str, Measure]`: `image_to_text_recall@1`, ..., `text_to_image_recall@1`, ... Of equal similarities the
        lower index comes first.

    Raises:
        `ValueError`: a caption of no image, an image without caption.
    """
    if caption_images.shape != (len(caption_embeds),):
        raise ValueError(
            f"{len(caption_embeds)} captions need an image each, got a tensor of shape {tuple(caption_images.shape)}."
        )
    if len(caption_images) == 0 or caption_images.min() < 0 or caption_images.max() >= len(image_embeds):
        raise ValueError(f"Captions must belong to images 0 to {len(image_embeds) - 1}.")
    per_image = torch.bincount(caption_images, minlength=len(image_embeds))
    if (per_image == 0).any():
        raise ValueError(f"Image {int((per_image == 0).nonzero()[0, 0])} has no caption.")

    text_ranks = torch.empty(len(image_embeds), dtype=torch.long, device=image_embeds.device)
    for rows, similarities in similarity_chunks(image_embeds, caption_embeds):
        images = torch.arange(rows.start, rows.stop, device=similarities.device)
        own = caption_images[None, :] == images[:, None]
        # The rank of the best own caption: nothing that comes before it is an own one. `argmax` of the similarities does
        # not promise to give the first of equal ones.
        own_similarities = similarities.masked_fill(~own, float("-inf"))
        is_best = own_similarities == own_similarities.amax(dim=1, keepdim=True)
        text_ranks[rows] = rank_of(similarities, is_best.int().argmax(dim=1))
    image_ranks = torch.empty_like(caption_images)
    for rows, similarities in similarity_chunks(caption_embeds, image_embeds):
        image_ranks[rows] = rank_of(similarities, caption_images[rows])
    num_images, num_captions = len(image_embeds), len(caption_embeds)
    sizes = Counter(per_image.tolist())
    measures = {}
    for k in ks:
        # Of the ways to take k captions, those without one of the image's own miss.
        missed = sum(number * math.comb(num_captions - own, k) for own, number in sizes.items())
        ways = num_images * math.comb(num_captions, k)
        chance = 1 - missed / ways if ways else 1.0
        measures[f"image_to_text_recall@{k}"] = Measure((text_ranks < k).float(), chance=chance)
    for k in ks:
        measures[f"text_to_image_recall@{k}"] = Measure((image_ranks < k).float(), chance=min(1.0, k / num_images))
    return measures


def winoground(image_embeds: Tensor, caption_embeds: Tensor) -> dict[str, Measure]:
    r"""
    Whether the right image and caption of two examples with the same words find each other.

    Args:
        image_embeds (`torch.Tensor` of shape `(num_examples, 2, dim)`):
            Unit-norm embeddings of the two images of each example.
        caption_embeds (`torch.Tensor` of shape `(num_examples, 2, dim)`):
            Unit-norm embeddings of the caption of the first and of the second image.

    Returns:
        `dict[str, Measure]`: `text_score` (each image is nearer to its caption than to the other one), `image_score`
        (each caption is nearer to its image than to the other one) and `group_score` (both). A tie is a miss. Chance is
        1/4, 1/4 and 1/6.

    Raises:
        `ValueError`: embeddings that are not two and two.
    """
    if image_embeds.shape != caption_embeds.shape or image_embeds.ndim != 3 or image_embeds.shape[1] != 2:
        raise ValueError(
            "Winoground needs embeddings of shape (num_examples, 2, dim) for images and captions, got "
            f"{tuple(image_embeds.shape)} and {tuple(caption_embeds.shape)}."
        )
    # similarities[:, i, c] is that of image i and caption c.
    similarities = image_embeds @ caption_embeds.transpose(1, 2)
    first, second = similarities[:, 0, 0], similarities[:, 1, 1]
    image_0_caption_1, image_1_caption_0 = similarities[:, 0, 1], similarities[:, 1, 0]
    text = (first > image_0_caption_1) & (second > image_1_caption_0)
    image = (first > image_1_caption_0) & (second > image_0_caption_1)
    return {
        "text_score": Measure(text.float(), chance=1 / 4),
        "image_score": Measure(image.float(), chance=1 / 4),
        "group_score": Measure((text & image).float(), chance=1 / 6),
    }


def same_class_retrieval(embeds: Tensor, labels: Tensor) -> dict[str, Measure]:
    r"""
    Every item is a query among all others; those of its class are relevant. The average precision of a query is the mean
    of the precision at the ranks of the relevant items. Items that are alone in their class are no queries.

    Args:
        embeds (`torch.Tensor` of shape `(num_items, dim)`):
            Unit-norm embeddings of one modality.
        labels (`torch.Tensor` of shape `(num_items,)`):
            Classes of the items.

    Returns:
        `dict[str, Measure]`: `mean_average_precision`, over the queries. Of equal similarities the lower index comes
        first.

    Raises:
        `ValueError`: no two items of one class.
    """
    precisions, is_query = [], torch.bincount(labels)[labels] > 1
    if not is_query.any():
        raise ValueError("Retrieval by class needs at least two items of one class.")
    places = torch.arange(1, len(embeds), device=embeds.device)
    chunks = similarity_chunks(embeds, embeds)
    for rows, similarities in progress_bar(chunks, "items of one class", unit=" chunks", delay=2):
        # The query itself goes last, behind all others, and is cut off.
        similarities.diagonal(rows.start).fill_(float("-inf"))
        order = similarities.argsort(dim=1, descending=True, stable=True)[:, :-1]
        relevant = labels[order] == labels[rows, None]
        precision = relevant.cumsum(dim=1) / places
        precisions.append((precision * relevant).sum(dim=1) / relevant.sum(dim=1))
    return {"mean_average_precision": Measure(torch.cat(precisions)[is_query])}
