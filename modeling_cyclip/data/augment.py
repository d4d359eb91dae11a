"""A second view of an image and its caption, for the in-modal contrastive term. No dictionary or model is downloaded.

The official code takes torchvision's AutoAugment and EDA (Wei & Zou, 2019, https://huggingface.co/papers/1901.11196).
Here the image operations are Pillow's, drawn from the generator that is handed in: no dependency for a crop and three
colour operations, and no random state that a resumed run would have to restore.
"""

import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from string import punctuation

from PIL import Image, ImageEnhance, ImageOps


# The crop that contrastive learning of images takes (Szegedy et al., 2015; Chen et al., 2020), but with more of the image
# left: captions name what is in it.
AREA = 0.4, 1.0
ASPECT_RATIO = 3 / 4, 4 / 3
STRENGTH = 0.4
# EDA's alpha: the share of the words that an operation changes.
CHANGED_SHARE = 0.1


class SecondView:
    r"""
    Makes it: the `augment` of [`CyCLIPTrainer`].

    Args:
        synonyms (`str` or `Path`, *optional*):
            A file of words that may stand for each other, one set a line, separated by commas. Without it captions are
            changed by swapping and deleting words alone.

    Raises:
        `ValueError`: a file that cannot be read, or has no line of two words.
    """

    def __init__(self, synonyms: str | Path | None = None):
        self.synonyms = {} if synonyms is None else read_synonyms(synonyms)

    def __call__(self, image: Image.Image, caption: str, draws: Random) -> tuple[Image.Image, str]:
        r"""
        Args:
            image (`PIL.Image.Image`):
                An RGB image.
            caption (`str`):
                Its caption.
            draws (`random.Random`):
                Where all that is drawn comes from.

        Returns:
            `tuple(PIL.Image.Image, str)`: the second view of both.
        """
        return augment_image(image, draws), augment_caption(caption, self.synonyms, draws)


def augment_image(image: Image.Image, draws: Random) -> Image.Image:
    """A part of the image, mirrored half of the time, with other brightness, contrast and saturation."""
    image = image.crop(_draw_box(*image.size, draws))
    if draws.random() < 0.5:
        image = ImageOps.mirror(image)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(draws.uniform(1 - STRENGTH, 1 + STRENGTH))
    return image


def _draw_box(width: int, height: int, draws: Random) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a part of the image; cut at its sides where area and aspect ratio do not fit."""
    area = draws.uniform(*AREA) * width * height
    ratio = math.exp(draws.uniform(*map(math.log, ASPECT_RATIO)))
    box_width = min(width, max(1, round(math.sqrt(area * ratio))))
    box_height = min(height, max(1, round(math.sqrt(area / ratio))))
    left, top = draws.randint(0, width - box_width), draws.randint(0, height - box_height)
    return left, top, left + box_width, top + box_height


def augment_caption(caption: str, synonyms: dict[str, list[str]], draws: Random) -> str:
    r"""
    The caption after one of EDA's operations on a tenth of its words, at least one: words swap places, are left out, or
    give way to a synonym. Words are what stands between spaces; of a single one without a synonym nothing changes.

    Args:
        caption (`str`):
            The caption.
        synonyms (`dict`):
            From words in lower case to what may stand for them.
        draws (`random.Random`):
            Where all that is drawn comes from.

    Returns:
        `str`: the other caption, not empty unless the caption is.
    """
    words = caption.split()
    replaceable = [place for place, word in enumerate(words) if _core(word).lower() in synonyms]
    operations: list[Callable[[], list[str]]] = []
    number = max(1, round(CHANGED_SHARE * len(words)))
    if len(words) > 1:
        operations += [lambda: _swap(words, number, draws), lambda: _delete(words, number, draws)]
    if replaceable:
        operations.append(lambda: _replace(words, replaceable, number, synonyms, draws))
    return " ".join(draws.choice(operations)()) if operations else caption


def _swap(words: list[str], number: int, draws: Random) -> list[str]:
    words = list(words)
    for _ in range(number):
        first, second = draws.sample(range(len(words)), 2)
        words[first], words[second] = words[second], words[first]
    return words


def _delete(words: list[str], number: int, draws: Random) -> list[str]:
    left_out = set(draws.sample(range(len(words)), number))
    return [word for place, word in enumerate(words) if place not in left_out]


def _replace(
    words: list[str], replaceable: list[int], number: int, synonyms: dict[str, list[str]], draws: Random
) -> list[str]:
    words = list(words)
    for place in draws.sample(replaceable, min(number, len(replaceable))):
        core = _core(words[place])
        words[place] = words[place].replace(core, draws.choice(synonyms[core.lower()]))
    return words


def _core(word: str) -> str:
    return word.strip(punctuation)


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
