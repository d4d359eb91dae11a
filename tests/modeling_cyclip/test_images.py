"""Images as they come in the wild."""

import pickle
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from modeling_cyclip.images import BrokenImageError, load_image


def encoded(image, format="PNG", **options):
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return {"bytes": buffer.getvalue(), "path": "picture"}


def gradient(dtype=np.uint8, scale=1):
    return (np.arange(64).reshape(8, 8).astype(dtype) * 4 * scale).astype(dtype)


@pytest.mark.parametrize(
    "image",
    [
        encoded(Image.new("RGB", (8, 8), "red")),
        encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"),
        encoded(Image.new("RGB", (8, 8), "red").quantize(4)),
        encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 255))),
        encoded(
            Image.new("RGB", (8, 8), "red"), "GIF", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")]
        ),
    ],
    ids=["rgb", "cmyk", "palette", "rgba", "animated"],
)
def test_every_mode_becomes_rgb(image):
    loaded = load_image(image)
    assert loaded.mode == "RGB" and loaded.size == (8, 8)
    red, green, blue = loaded.getpixel((4, 4))
    assert red > 230 and green < 30 and blue < 30


def test_sixteen_bit_values_are_scaled_not_clipped():
    loaded = np.asarray(load_image(encoded(Image.fromarray(gradient(np.uint16, scale=256)))))
    assert np.abs(loaded[:, :, 0].astype(int) - gradient()).max() <= 1


def test_transparency_is_laid_over_white():
    assert load_image(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)))).getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert load_image(encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)).size == (4, 8)


def test_paths_and_images_are_opened(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (8, 8), "red").save(path)
    for image in (str(path), path, {"bytes": None, "path": str(path)}, Image.open(path)):
        assert load_image(image).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    "content",
    [b"", b"this is no image", encoded(Image.effect_noise((64, 64), 50), "JPEG")["bytes"][:700]],
    ids=["empty", "text", "truncated"],
)
def test_broken_images_are_named_with_the_reason(content):
    with pytest.raises(BrokenImageError, match=r"cats/7\.jpg: .+"):
        load_image({"bytes": content, "path": "cats/7.jpg"})


def test_decompression_bombs_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16)
    with pytest.raises(BrokenImageError, match="DecompressionBomb"):
        load_image(encoded(Image.new("RGB", (8, 8))))


def test_missing_files_are_broken_images(tmp_path):
    with pytest.raises(BrokenImageError, match=r"gone\.png"):
        load_image(tmp_path / "gone.png")


def test_the_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(BrokenImageError("a.png", "empty")))
    assert (error.name, error.reason) == ("a.png", "empty")
