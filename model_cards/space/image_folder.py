"""The folder of images that the page compares with: one subfolder a class."""

from pathlib import Path

from PIL import Image, ImageOps


SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def list_images(folder: Path) -> list[Path]:
    """The images in the subfolders of `folder`, which need not exist."""
    return sorted(path for path in folder.glob("*/**/*") if path.suffix.lower() in SUFFIXES)


def class_of(path: Path, folder: Path) -> str:
    """The name of its subfolder, `_` read as a space."""
    return path.relative_to(folder).parts[0].replace("_", " ")


def open_image(path: Path) -> Image.Image:
    """As it is meant to be seen: turned as its camera says, transparent parts on white."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
