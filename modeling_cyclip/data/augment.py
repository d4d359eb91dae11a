"""Augmentation in training: a random part of each image, and a second view of an image and its caption.

The second view is for the in-modal contrastive term. The official code takes torchvision's AutoAugment and EDA (Wei & Zou,
2019, https://huggingface.co/papers/1901.11196). Here Pillow changes the images, and the caller's generator draws everything.
So a crop and three colour operations need no further dependency, no dictionary or model is downloaded, and a resumed run
has no random state to restore.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from string import punctuation

import numpy as np
from PIL import Image, ImageEnhance, ImageOps


# Those of torchvision's crop (Szegedy et al., 2015), and so of open_clip's.
ASPECT_RATIO = 3 / 4, 4 / 3
TRIES = 10
# Of a second view: more than contrastive learning of images leaves (Chen et al., 2020), since captions name what is in it.
AREA = 0.4, 1.0
STRENGTH = 0.4
# EDA's alpha: the share of the words that an operation changes.
CHANGED_SHARE = 0.1


def check_area(area: Sequence[float]) -> None:
    """Raises a `ValueError` for what is no `area` of [`random_part`]."""
    is_pair = isinstance(area, Sequence) and len(area) == 2
    if not (is_pair and 0 < area[0] <= area[1] <= 1):
        raise ValueError(
            "`random_resized_crop` takes two numbers, the least and the most of an image's area to keep, such as 0.9 1.0 "
            f"(above 0, at most 1, the smaller one first), not {area}."
        )


def random_part(image: Image.Image | np.ndarray, area: Sequence[float], draws: Random) -> Image.Image | np.ndarray:
    r"""
    A random part of an image, as torchvision's `RandomResizedCrop` cuts it out before it resizes it.

    Args:
        image (`PIL.Image.Image` or `np.ndarray` of shape `(height, width, channels)`):
            The image.
        area (`tuple[float, float]`):
            The least and the most of the image's area to keep, as shares of it.
        draws (`random.Random`):
            Draws the share, an aspect ratio from 3:4 to 4:3 (its logarithm, uniformly), and the place. If ten of them do
            not fit, the part is the middle of the image, as much of it as has such an aspect ratio.

    Returns:
        `PIL.Image.Image` or `np.ndarray`: the part. Of an array it is a view.
    """
    is_array = isinstance(image, np.ndarray)
    height, width = image.shape[:2] if is_array else (image.height, image.width)
    left, top, right, bottom = _random_box(width, height, area, draws)
    return image[top:bottom, left:right] if is_array else image.crop((left, top, right, bottom))


def _random_box(width: int, height: int, area: Sequence[float], draws: Random) -> tuple[int, int, int, int]:
    for _ in range(TRIES):
        pixels = draws.uniform(*area) * width * height
        ratio = math.exp(draws.uniform(*map(math.log, ASPECT_RATIO)))
        part_width, part_height = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < part_width <= width and 0 < part_height <= height:
            left, top = draws.randint(0, width - part_width), draws.randint(0, height - part_height)
            return left, top, left + part_width, top + part_height
    # Hardly a part of such an area fits, as in a long image. torchvision takes the middle, too.
    longest = ASPECT_RATIO[1]
    part_width, part_height = min(width, round(height * longest)), min(height, round(width * longest))
    left, top = (width - part_width) // 2, (height - part_height) // 2
    return left, top, left + part_width, top + part_height


class SecondView:
    r"""
    The `augment` of [`CyCLIPTrainer`]: makes a second view of an RGB image and of its caption, drawing from the generator.

    Args:
        synonyms (`str` or `Path`, *optional*):
            A file of words that may stand for each other: one set a line, separated by commas. Without it, an operation
            swaps or deletes words.

    Raises:
        `ValueError`: a file that cannot be read, or has no line of two words.
    """

    def __init__(self, synonyms: str | Path | None = None):
        self.synonyms = {} if synonyms is None else read_synonyms(synonyms)

    def __call__(self, image: Image.Image, caption: str, draws: Random) -> tuple[Image.Image, str]:
        return augment_image(image, draws), augment_caption(caption, self.synonyms, draws)


def augment_image(image: Image.Image, draws: Random) -> Image.Image:
    """A part of the image, mirrored half of the time, with other brightness, contrast and saturation."""
    image = random_part(image, AREA, draws)
    if draws.random() < 0.5:
        image = ImageOps.mirror(image)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(draws.uniform(1 - STRENGTH, 1 + STRENGTH))
    return image


def augment_caption(caption: str, synonyms: dict[str, list[str]], draws: Random) -> str:
    """
    The caption after one of EDA's operations on a tenth of its words, at least one: words swap places, are left out, or
    give way to a synonym (`synonyms` has them by word in lower case). White space separates words. A single word without a
    synonym stays, so that only an empty caption gives an empty one.
    """
    words = caption.split()
    number = max(1, round(CHANGED_SHARE * len(words)))
    replaceable = [place for place, word in enumerate(words) if word.strip(punctuation).lower() in synonyms]
    operations = ["swap", "delete"] if len(words) > 1 else []
    if replaceable:
        operations.append("replace")
    if not operations:
        return caption
    operation = draws.choice(operations)
    if operation == "swap":
        for _ in range(number):
            first, second = draws.sample(range(len(words)), 2)
            words[first], words[second] = words[second], words[first]
    elif operation == "delete":
        left_out = set(draws.sample(range(len(words)), number))
        words = [word for place, word in enumerate(words) if place not in left_out]
    else:
        for place in draws.sample(replaceable, min(number, len(replaceable))):
            core = words[place].strip(punctuation)
            words[place] = words[place].replace(core, draws.choice(synonyms[core.lower()]))
    return " ".join(words)


def read_synonyms(path: str | Path) -> dict[str, list[str]]:
    """From each word of the file, in lower case, to the others of its sets."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The synonyms {path} cannot be read: {error}") from error
    synonyms: dict[str, list[str]] = {}
    for line in lines:
        words = [word.strip() for word in line.split(",") if word.strip()]
        for word in words:
            if others := [other for other in words if other.lower() != word.lower()]:
                synonyms.setdefault(word.lower(), []).extend(others)
    if not synonyms:
        raise ValueError(
            f"{path} has no synonyms: write one set a line, separated by commas, such as `car, automobile`."
        )
    return synonyms
