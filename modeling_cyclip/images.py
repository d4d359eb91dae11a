"""Opening images as they come in the wild."""

import os
from io import BytesIO

from PIL import Image, ImageOps


class BrokenImageError(ValueError):
    """An image that cannot be read, with its name and the reason."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self):
        # An exception travels between processes by its constructor's arguments.
        return type(self), (self.name, self.reason)


def load_image(image: Image.Image | dict | str | os.PathLike) -> Image.Image:
    r"""
    An RGB image from what a `datasets` image column can hold.

    Args:
        image (`PIL.Image.Image`, `dict` or path):
            An image, a `{"bytes", "path"}` dictionary (an image column with `decode=False`), or a file name.

    Returns:
        `PIL.Image.Image`: in RGB, upright (EXIF orientation applied), the first frame of an animation, transparency over
        white.

    Raises:
        [`BrokenImageError`]: empty, truncated, not an image, or so large that it may be a decompression bomb.
    """
    if isinstance(image, dict):
        name = image.get("path") or "an image without a file name"
        source = image["path"] if image.get("bytes") is None else BytesIO(image["bytes"])
    elif isinstance(image, Image.Image):
        name, source = getattr(image, "filename", "") or "an image without a file name", None
    else:
        name = source = os.fspath(image) if isinstance(image, (str, os.PathLike)) else image
    try:
        return _to_rgb(image if source is None else Image.open(source))
    # Pillow's decoders raise nearly anything on a damaged file (OSError, SyntaxError, ValueError, struct.error, ...).
    except Exception as error:
        raise BrokenImageError(str(name), f"{type(error).__name__}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    # Without an Exif block, as in most images, this reads a dictionary and copies nothing.
    image = ImageOps.exif_transpose(image) if image.getexif() else image
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit values to white instead of scaling them.
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")
