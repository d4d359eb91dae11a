"""Retrieval between images and captions (the test protocol of Karpathy and Fei-Fei, 2015)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .intervals import Measure
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
            Unit-norm caption embeddings, any number an image, at least one.
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
        # The rank of the best own caption: nothing that comes before it is an own one.
        text_ranks[rows] = rank_of(similarities, _first_best(similarities.masked_fill(~own, float("-inf"))))
    image_ranks = torch.empty_like(caption_images)
    for rows, similarities in similarity_chunks(caption_embeds, image_embeds):
        image_ranks[rows] = rank_of(similarities, caption_images[rows])
    return {
        **{f"image_to_text_recall@{k}": Measure((text_ranks < k).float()) for k in ks},
        **{f"text_to_image_recall@{k}": Measure((image_ranks < k).float()) for k in ks},
    }


def _first_best(values: Tensor) -> Tensor:
    """The lowest index of each row's maximum, which `argmax` does not promise."""
    return (values == values.amax(dim=1, keepdim=True)).int().argmax(dim=1)
