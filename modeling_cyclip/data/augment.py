"""A second view of an image and its caption, for the in-modal contrastive term. No dictionary or model is downloaded.

The official code takes torchvision's AutoAugment and EDA (Wei & Zou, 2019, https://huggingface.co/papers/1901.11196).
Here Pillow changes the images, and the caller's generator draws everything. So a crop and three colour operations need no
further dependency, and a resumed run has no random state to restore.
"""

import math
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
    # The part is cut at the image's sides where area and aspect ratio do not fit.
    area = draws.uniform(*AREA) * image.width * image.height
    ratio = math.exp(draws.uniform(*map(math.log, ASPECT_RATIO)))
    width = min(image.width, max(1, round(math.sqrt(area * ratio))))
    height = min(image.height, max(1, round(math.sqrt(area / ratio))))
    left, top = draws.randint(0, image.width - width), draws.randint(0, image.height - height)
    image = image.crop((left, top, left + width, top + height))
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
