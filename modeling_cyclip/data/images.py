"""Opens images as they come in the wild. It needs Pillow alone: a published Space takes this file along."""

import os
import stat
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ExifTags, Image


if TYPE_CHECKING:
    import numpy as np

try:
    from simplejpeg import decode_jpeg
except ImportError:
    decode_jpeg = None

# Pillow tries its formats in the order in which they were loaded, and `datasets` would load all of them by their names: a JPEG
# would be tried as four others first.
Image.preinit()

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Of an image more than so many times as long as it is wide, the middle is opened. CLIP's processors crop to the middle
# anyway, but only after they have made the shorter side as long as the model needs it: of 10,000 x 2 pixels, gigabytes.
MAX_ASPECT_RATIO = 16
ORIENTATION = ExifTags.Base.Orientation.value
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Chunks of a PNG that change no pixel, and of which Pillow reads no more than a megabyte.
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


class BrokenImageError(ValueError):
    """An image that cannot be read, with its name and the reason."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self):
        # An exception travels between processes by its constructor's arguments.
        return type(self), (self.name, self.reason)


def load_image(image: Image.Image | dict | str | bytes | os.PathLike, min_size: int | None = None) -> Image.Image:
    r"""
    Opens an image, whatever a `datasets` image column has for it, or one that is a part of a file.

    Args:
        image (`PIL.Image.Image`, `dict`, `bytes` or path):
            An image, the content of a file, a `{"bytes", "path"}` dictionary (an image column with `decode=False`), a
            `{"path", "member", "offset", "size"}` dictionary (an image within an archive), or a file name.
        min_size (`int`, *optional*):
            Decodes a JPEG at a half, a quarter or an eighth of its size, which is faster, as long as both sides keep at
            least this many pixels. By default it is decoded at its full size.

    Returns:
        `PIL.Image.Image`: in RGB, upright (EXIF orientation applied), the first frame of an animation. The pixels are those
        that a `pipeline` of plain transformers gives to the model, so that it is trained on what it will see:
        transparency is dropped, and grey values above 255 are cut to white. Where that leaves nothing of a picture, a
        warning says so. Of an image more than 16 times as long as it is wide, it is the middle.

    Raises:
        [`BrokenImageError`]: empty, truncated, not an image, no regular file, or so large that it may be a decompression bomb.
    """
    return _load(image, min_size, _to_rgb)


def load_pixels(
    image: Image.Image | dict | str | bytes | os.PathLike, min_size: int | None = None
) -> "Image.Image | np.ndarray":
    """
    Opens an image as [`load_image`] does, for code that takes its pixels from either kind of result. An ordinary JPEG becomes
    an array `(height, width, 3)` of bytes where simplejpeg is installed: Pillow's pixels, without two copies of them.
    """
    return _load(image, min_size, _to_pixels)


def _load(
    image: Image.Image | dict | str | bytes | os.PathLike, min_size: int | None, convert: Callable[[Image.Image], Any]
) -> Any:
    # No name of a file has a zero byte, and the beginning of every image has one.
    if isinstance(image, bytes) and b"\0" in image:
        image = {"bytes": image, "path": None}
    if isinstance(image, Image.Image):
        name = getattr(image, "filename", "") or "an image without a file name"
    elif isinstance(image, dict):
        name = "/".join(filter(None, (image.get("path"), image.get("member")))) or "an image without a file name"
    else:
        name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else repr(image)[:100]
    try:
        if isinstance(image, Image.Image):
            return _to_rgb(image)
        source = _source(image)
        try:
            return convert(_drafted(source, min_size))
        except ValueError as error:
            if "MAX_TEXT" not in str(error):
                raise
            return convert(_drafted(_without_texts(source), min_size))
    # Pillow's decoders raise nearly anything on a damaged file (OSError, SyntaxError, ValueError, struct.error, ...).
    except Exception as error:
        raise BrokenImageError(str(name), f"{type(error).__name__}: {error}") from error


def encoded_bytes(image: dict) -> bytes:
    """The content of the image file that a row has or names. Raises an `OSError` where there is no such file."""
    if image.get("bytes") is not None:
        return image["bytes"]
    # The file is opened for each image, so that the processes of a dataloader share no handle.
    with open(_regular(image["path"]), "rb", buffering=0) as file:
        file.seek(image.get("offset") or 0)
        return file.read(-1 if image.get("size") is None else image["size"])


def _source(image: dict | str | os.PathLike) -> BytesIO | str | os.PathLike:
    if not isinstance(image, dict):
        return _regular(image)
    is_file = image.get("bytes") is None and image.get("offset") is None
    return _regular(image["path"]) if is_file else BytesIO(encoded_bytes(image))


def _regular(path: str | bytes | os.PathLike) -> str | bytes | os.PathLike:
    # A FIFO would wait for someone to write, and a device may have no end.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is no regular file")
    return path


def _drafted(source: BytesIO | str | bytes | os.PathLike, min_size: int | None) -> Image.Image:
    """The image with its header read, and the size that it will be decoded at."""
    image = Image.open(source)
    if min_size is not None:
        image.draft(None, (min_size, min_size))
    return image


def _without_texts(png: BytesIO | str | bytes | os.PathLike) -> BytesIO:
    """The file without what programs have written about it, such as the settings of an image generator."""
    content = png.getvalue() if isinstance(png, BytesIO) else Path(os.fsdecode(png)).read_bytes()
    kept, start = [content[:8]], 8
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if content[start + 4 : start + 8] not in PNG_TEXTS:
            kept.append(content[start:end])
        start = end
    return BytesIO(b"".join(kept))


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    image = _middle(_upright(image))
    if image.mode == "RGB":
        return image
    # Of a palette with transparency, Pillow would warn at each conversion that leaves it out.
    rgb = (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
    _say_what_is_lost(image, rgb)
    return rgb


def _to_pixels(image: Image.Image) -> "Image.Image | np.ndarray":
    is_whole = max(image.size) <= MAX_ASPECT_RATIO * min(image.size) and _turn(image) is None
    if decode_jpeg is None or image.format != "JPEG" or image.mode not in ("RGB", "L") or not is_whole:
        return _to_rgb(image)
    image.fp.seek(0)
    try:
        pixels = decode_jpeg(image.fp.read(), "RGB", min_height=image.height, min_width=image.width)
    except ValueError:  # it is damaged: Pillow decides whether it is broken
        return _to_rgb(image)
    image.close()
    return pixels


def _upright(image: Image.Image) -> Image.Image:
    # `ImageOps.exif_transpose` would write the block anew, and fail where a value in it cannot be written.
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        exif = image.getexif()
        return TURNS.get(exif[ORIENTATION]) if ORIENTATION in exif else None
    except Exception:  # a broken block is no fault of the picture
        return None


def _middle(image: Image.Image) -> Image.Image:
    width, height = image.size
    longest = MAX_ASPECT_RATIO * min(width, height)
    if width <= longest and height <= longest:
        return image
    # As much is cut off on both sides.
    left, top = (max(0, side - longest) // 2 for side in (width, height))
    return image.crop((left, top, width - left, height - top))


def _say_what_is_lost(image: Image.Image, rgb: Image.Image) -> None:
    # Python shows a warning once.
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        if image.getextrema()[1] > 255:
            warnings.warn(
                "Images have grey values above 255, which become white here as in every pipeline of transformers. Save them "
                "with 8 bits a pixel, for training and for use: divide 12 bits by 16, 16 bits by 256.",
                stacklevel=2,
            )
    elif image.has_transparency_data and _is_plain(rgb) and not _is_plain(image.convert("RGBA").getchannel("A")):
        warnings.warn(
            "Images show nothing without their transparency, which is dropped here as in every pipeline of transformers. "
            "Save them without it, on a background, for training and for use.",
            stacklevel=2,
        )


def _is_plain(image: Image.Image) -> bool:
    return all(low == high for low, high in (channel.getextrema() for channel in image.split()))


def list_images(folder: Path) -> list[Path]:
    """The images in the subfolders of `folder`, which need not exist."""
    return sorted(path for path in folder.glob("*/**/*") if path.suffix.lower() in SUFFIXES)


def class_of(path: Path, folder: Path) -> str:
    """The name of the subfolder that an image lies in, with spaces for `_`."""
    return path.relative_to(folder).parts[0].replace("_", " ")
