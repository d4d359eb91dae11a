"""Opens images as they come in the wild. It needs Pillow alone: a published Space takes this file along."""

import os
import stat
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps


SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class BrokenImageError(ValueError):
    """An image that cannot be read, with its name and the reason."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self):
        # An exception travels between processes by its constructor's arguments.
        return type(self), (self.name, self.reason)


def load_image(image: Image.Image | dict | str | os.PathLike, min_size: int | None = None) -> Image.Image:
    r"""
    Opens an image, whatever a `datasets` image column has for it, or one that is a part of a file.

    Args:
        image (`PIL.Image.Image`, `dict` or path):
            An image, a `{"bytes", "path"}` dictionary (an image column with `decode=False`), a
            `{"path", "member", "offset", "size"}` dictionary (an image within an archive), or a file name.
        min_size (`int`, *optional*):
            Decodes a JPEG at a half, a quarter or an eighth of its size, which is faster, as long as both sides keep at
            least this many pixels. By default it is decoded at its full size.

    Returns:
        `PIL.Image.Image`: in RGB, upright (EXIF orientation applied), the first frame of an animation, transparency over
        white.

    Raises:
        [`BrokenImageError`]: empty, truncated, not an image, no regular file, or so large that it may be a decompression bomb.
    """
    if isinstance(image, Image.Image):
        name = getattr(image, "filename", "") or "an image without a file name"
    elif isinstance(image, dict):
        name = "/".join(filter(None, (image.get("path"), image.get("member")))) or "an image without a file name"
    else:
        name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else image
    try:
        if not isinstance(image, Image.Image):
            image = Image.open(_source(image))
            if min_size is not None:
                image.draft(None, (min_size, min_size))
        return _to_rgb(image)
    # Pillow's decoders raise nearly anything on a damaged file (OSError, SyntaxError, ValueError, struct.error, ...).
    except Exception as error:
        raise BrokenImageError(str(name), f"{type(error).__name__}: {error}") from error


def _source(image: dict | str | os.PathLike) -> BytesIO | str | os.PathLike:
    if not isinstance(image, dict):
        return _regular(image)
    if image.get("offset") is not None:
        # The file is opened for each image, so that the processes of a dataloader share no handle.
        with open(_regular(image["path"]), "rb", buffering=0) as file:
            file.seek(image["offset"])
            return BytesIO(file.read(image["size"]))
    return _regular(image["path"]) if image.get("bytes") is None else BytesIO(image["bytes"])


def _regular(path: str | bytes | os.PathLike) -> str | bytes | os.PathLike:
    # A FIFO would wait for someone to write, and a device may have no end.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is no regular file")
    return path


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
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def list_images(folder: Path) -> list[Path]:
    """The images in the subfolders of `folder`, which need not exist."""
    return sorted(path for path in folder.glob("*/**/*") if path.suffix.lower() in SUFFIXES)


def class_of(path: Path, folder: Path) -> str:
    """The name of the subfolder that an image lies in, with spaces for `_`."""
    return path.relative_to(folder).parts[0].replace("_", " ")
