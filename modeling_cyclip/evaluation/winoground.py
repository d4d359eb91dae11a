"""Winoground: two images and two captions of the same words (Thrush et al., 2022, section 3)."""

from torch import Tensor

from .intervals import Measure


def winoground(image_embeds: Tensor, caption_embeds: Tensor) -> dict[str, Measure]:
    r"""
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
        "text_score": Measure(text.float()),
        "image_score": Measure(image.float()),
        "group_score": Measure((text & image).float()),
    }
