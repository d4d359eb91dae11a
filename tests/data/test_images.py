"""Images as they come in the wild."""

import contextlib
import os
import pickle
import threading
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image, PngImagePlugin
from transformers import CLIPImageProcessor, SiglipImageProcessor
from transformers.image_utils import load_image as load_as_pipelines_do

from modeling_cyclip.data import data_collator, images
from modeling_cyclip.data.data_collator import decoding_size, normalize, process_image
from modeling_cyclip.data.images import BrokenImageError, load_image, load_pixels


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


def with_alpha(mode="RGBA"):
    """Shades with an alpha of their own, some of them quite transparent."""
    return Image.merge("RGBA", [*photo((48, 32)).split(), Image.effect_noise((48, 32), 90)]).convert(mode)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


ONE_BIT_OF_ALPHA = {"transparency": 3}
AN_ALPHA_A_COLOUR = {"transparency": bytes(range(0, 256, 2))}
TURNED_BY_XMP = PngImagePlugin.PngInfo()
TURNED_BY_XMP.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta tiff:Orientation="6"/>')
KINDS = {
    "rgb": lambda: (photo((48, 32)), "PNG", {}),
    "rgb, one colour transparent": lambda: (photo((48, 32)), "PNG", {"transparency": (1, 2, 3)}),
    "rgba": lambda: (with_alpha(), "PNG", {}),
    "rgba webp": lambda: (with_alpha(), "WEBP", {"lossless": True, "exact": True}),
    "black on transparency": lambda: (
        Image.merge("LA", [Image.new("L", (48, 32)), with_alpha().getchannel("A")]),
        "PNG",
        {},
    ),
    "grey and alpha": lambda: (with_alpha("LA"), "PNG", {}),
    "palette": lambda: (photo((48, 32)).quantize(64), "PNG", {}),
    "palette, one colour transparent": lambda: (photo((48, 32)).quantize(64), "PNG", ONE_BIT_OF_ALPHA),
    "palette, an alpha a colour": lambda: (photo((48, 32)).quantize(128), "PNG", AN_ALPHA_A_COLOUR),
    "gif, one colour transparent": lambda: (photo((48, 32)).quantize(64), "GIF", ONE_BIT_OF_ALPHA),
    "grey": lambda: (photo((48, 32)).convert("L"), "PNG", {}),
    "grey, one level transparent": lambda: (photo((48, 32)).convert("L"), "PNG", {"transparency": 7}),
    "black and white": lambda: (photo((48, 32)).convert("1"), "PNG", {}),
    "grey of 12 bits": lambda: (Image.fromarray(gradient(np.uint16, scale=16)), "PNG", {}),
    "grey of 16 bits": lambda: (Image.fromarray(gradient(np.uint16, scale=256)), "PNG", {}),
    "grey of 16 bits, tiff": lambda: (Image.fromarray(gradient(np.uint16, scale=256)), "TIFF", {}),
    "grey of 32 bits": lambda: (Image.fromarray(gradient(np.int32)), "TIFF", {}),
    "grey of 32 bits, large": lambda: (Image.fromarray(gradient(np.int32, scale=2**16)), "TIFF", {}),
    "grey, floating point": lambda: (Image.fromarray(gradient(np.float32)), "TIFF", {}),
    "cmyk": lambda: (photo((48, 32)).convert("CMYK"), "JPEG", {}),
    **{
        f"turned by exif, {orientation}": lambda orientation=orientation: (
            photo((48, 32)),
            "JPEG",
            turned(orientation),
        )
        for orientation in range(10)
    },
    "grey of 16 bits, turned": lambda: (Image.fromarray(gradient(np.uint16, scale=16)), "PNG", turned(6)),
    "turned by xmp": lambda: (photo((48, 32)), "PNG", {"pnginfo": TURNED_BY_XMP}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_images_are_opened_as_a_pipeline_of_transformers_opens_them(tmp_path, kind):
    image, format, options = KINDS[kind]()
    path = tmp_path / f"image.{format.lower()}"
    image.save(path, format, **options)
    expected = load_as_pipelines_do(str(path))
    for loaded in (
        load_image(path),
        load_image({"bytes": path.read_bytes(), "path": None}),
        load_image(Image.open(path)),
    ):
        assert loaded.mode == "RGB" and np.array_equal(np.asarray(loaded), np.asarray(expected))


@pytest.mark.parametrize(
    "kind, message",
    [
        ("black on transparency", "transparency"),
        ("grey of 12 bits", "8 bits"),
        ("grey of 16 bits, tiff", "8 bits"),
        ("grey of 32 bits, large", "8 bits"),
    ],
)
def test_a_picture_that_is_lost_is_said(kind, message):
    image, format, options = KINDS[kind]()
    with pytest.warns(UserWarning, match=message):
        load_image(encoded(image, format, **options))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "kind",
    [kind for kind in KINDS if not kind.startswith(("black on", "grey of 12", "grey of 16", "grey of 32 bits, l"))],
)
def test_other_images_give_no_warning(kind):
    image, format, options = KINDS[kind]()
    load_image(encoded(image, format, **options))


@pytest.mark.filterwarnings("error")
def test_a_blank_image_is_not_lost():
    load_image(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0))))


@pytest.mark.parametrize("after_the_pixels", [False, True])
def test_long_texts_in_a_png_do_not_break_it(after_the_pixels, tmp_path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", "x" * 2**21, zip=True)
    image = photo((48, 32))
    content = encoded(image, pnginfo=texts)["bytes"]
    if after_the_pixels:
        start, end = (content.index(chunk) - 4 for chunk in (b"zTXt", b"IDAT"))
        close = content.index(b"IEND") - 4
        content = content[:start] + content[end:close] + content[start:end] + content[close:]
    path = tmp_path / "generated.png"
    path.write_bytes(content)
    for source in (path, {"bytes": content, "path": None}):
        assert np.array_equal(np.asarray(load_image(source)), np.asarray(image))
    with pytest.raises(BrokenImageError, match=r"(?i)truncated"):
        load_image({"bytes": content[: -len(content) // 3], "path": None})


@pytest.mark.parametrize("block", ["cannot be written again", "no block at all"])
def test_a_broken_exif_block_does_not_break_the_image(block):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x011A] = 72.0  # XResolution
    content = encoded(photo((48, 32)), "JPEG", exif=exif)["bytes"]
    if block == "no block at all":
        content = content.replace(b"Exif\0\0II*\0", b"Exif\0\0broke").replace(b"Exif\0\0MM\0*", b"Exif\0\0broke")
        size = (48, 32)
    else:
        # The resolution becomes the signed fraction -1/0.
        content = content.replace(b"\x1a\x01\x05\0", b"\x1a\x01\x0a\0").replace(
            b"H\0\0\0\1\0\0\0", b"\xff" * 4 + b"\0" * 4
        )
        size = (32, 48)
    assert load_image({"bytes": content, "path": None}).size == size


@pytest.mark.parametrize("size", [(10_000, 2), (2, 10_001)])
def test_of_a_strip_only_the_middle_is_opened(size):
    strip = load_image(encoded(Image.new("RGB", size)))
    assert sorted(strip.size) in ([2, 32], [2, 33])


@pytest.mark.parametrize("size", [(900, 30), (31, 1000), (901, 30), (2000, 4)])
def test_the_model_sees_of_a_strip_what_it_would_see_of_all(size):
    processor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=8)
    image = Image.effect_mandelbrot(size, (-2, -1, 1, 1), 20).convert("RGB")
    whole, middle = (processor(strip, return_tensors="pt")["pixel_values"] for strip in (image, load_image(image)))
    assert middle.shape == whole.shape
    assert (whole - middle).abs().max() * max(processor.image_std) * 255 <= 40


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert load_image(encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)).size == (4, 8)


def test_paths_and_images_are_opened(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (8, 8), "red").save(path)
    for image in (str(path), path, {"bytes": None, "path": str(path)}, Image.open(path)):
        assert load_image(image).getpixel((0, 0)) == (255, 0, 0)


def test_the_content_of_a_file_is_told_from_its_name(tmp_path):
    image = photo((48, 32))
    for format in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        assert load_image(encoded(image, format)["bytes"]).size == image.size
    image.save(tmp_path / "a.png")
    assert load_image(os.fsencode(tmp_path / "a.png")).size == image.size
    with pytest.raises(BrokenImageError, match=r"^an image without a file name: .{0,99}$"):
        load_image(b"\0" * 9999)


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


@pytest.fixture
def fifo(tmp_path):
    """A reader of a FIFO waits for a writer. This one comes and goes, so that a fault fails instead of hanging."""
    path = tmp_path / "fifo.png"
    os.mkfifo(path)
    ended = threading.Event()

    def write():
        while not ended.wait(0.05):
            with contextlib.suppress(OSError):  # nobody reads
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))

    writer = threading.Thread(target=write)
    writer.start()
    yield path
    ended.set()
    writer.join()


@pytest.mark.parametrize(
    "image",
    [
        str,
        Path,
        os.fsencode,
        lambda path: {"bytes": None, "path": str(path)},
        lambda path: {"path": str(path), "member": "a.png", "offset": 0, "size": 4},
    ],
    ids=["name", "path", "bytes", "row", "member"],
)
def test_what_is_no_regular_file_is_not_opened(tmp_path, fifo, image):
    null = tmp_path / "null.png"
    null.symlink_to("/dev/null")
    for path in (fifo, null, tmp_path):
        with pytest.raises(BrokenImageError, match=f"{path.name}.*no regular file"):
            load_image(image(path))


def test_the_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(BrokenImageError("a.png", "empty")))
    assert (error.name, error.reason) == ("a.png", "empty")


def photo(size):
    """Detail at every scale, as in a photograph."""
    random = np.random.default_rng(0)
    layers = [
        Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        for side in (4, 16, 64, 256)
    ]
    mixed = sum(np.asarray(layer, dtype=float) / 2**step for step, layer in enumerate(layers))
    return Image.fromarray((mixed / mixed.max() * 255).astype(np.uint8))


def test_an_image_within_an_archive_is_read_by_its_place(tmp_path):
    content = encoded(Image.new("RGB", (8, 8), "red"))["bytes"]
    (tmp_path / "a.tar").write_bytes(b"before" + content + b"after")
    place = {"path": str(tmp_path / "a.tar"), "member": "red.png", "offset": 6, "size": len(content)}
    assert load_image(place).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(BrokenImageError, match=r"a\.tar/red\.png: "):
        load_image({**place, "offset": 0})


@pytest.mark.parametrize(
    "size, min_size, reduced",
    [((640, 480), 240, (320, 240)), ((640, 480), 241, (640, 480)), ((640, 480), 60, (80, 60)), ((8, 8), 32, (8, 8))],
)
def test_a_jpeg_is_decoded_no_smaller_than_asked(size, min_size, reduced):
    assert load_image(encoded(Image.new("RGB", size), "JPEG"), min_size).size == reduced
    assert load_image(encoded(Image.new("RGB", size), "PNG"), min_size).size == size


def test_a_truncated_jpeg_is_broken_at_a_reduced_size_too():
    content = encoded(photo((256, 256)), "JPEG")["bytes"]
    with pytest.raises(BrokenImageError, match="truncated"):
        load_image({"bytes": content[: len(content) // 2], "path": "cut.jpg"}, 64)


def test_reduced_decoding_turns_and_does_not_touch_images_of_others():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = encoded(Image.new("RGB", (64, 32)), "JPEG", exif=exif)
    assert load_image(image, 16).size == (16, 32)
    opened = Image.open(BytesIO(image["bytes"]))
    assert load_image(opened, 16).size == (32, 64)


ROTATED = Image.Exif()
ROTATED[0x0112] = 6


@pytest.mark.parametrize("min_size", [None, 24, 64])
@pytest.mark.parametrize(
    "mode, size, options",
    [
        ("RGB", (640, 480), {"quality": 95, "subsampling": "4:4:4"}),
        ("RGB", (97, 131), {"quality": 75, "subsampling": "4:2:2"}),
        ("RGB", (641, 479), {"quality": 30, "subsampling": "4:2:0"}),
        ("RGB", (131, 97), {"progressive": True}),
        ("RGB", (131, 97), {"restart_marker_rows": 1}),
        ("RGB", (131, 97), {"keep_rgb": True}),
        ("L", (131, 97), {}),
        ("RGB", (1, 1), {}),
    ],
)
def test_simplejpeg_gives_the_pixels_of_pillow(mode, size, options, min_size):
    image = encoded(photo(size).convert(mode), "JPEG", **options)
    pixels, expected = load_pixels(image, min_size), load_image(image, min_size)
    assert isinstance(pixels, np.ndarray) and pixels.shape == (expected.height, expected.width, 3)
    assert np.abs(pixels.astype(int) - np.asarray(expected)).max() <= 2


@pytest.mark.parametrize(
    "image",
    [
        encoded(Image.new("RGB", (64, 32), "red"), "JPEG", exif=ROTATED),
        encoded(Image.new("RGB", (340, 10), "red"), "JPEG"),
        encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"),
        encoded(Image.new("RGB", (8, 8), "red")),
        Image.new("L", (8, 8), 7),
    ],
    ids=["rotated", "long", "cmyk", "png", "opened"],
)
def test_other_images_are_opened_by_pillow(image):
    assert np.array_equal(np.asarray(load_pixels(image)), np.asarray(load_image(image)))


@pytest.mark.parametrize("end", [300, 700, -200])
def test_a_truncated_jpeg_is_broken_with_the_words_of_pillow(tmp_path, end):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(photo((256, 256)), "JPEG")["bytes"][:end])
    for image in (path, {"bytes": path.read_bytes(), "path": "cut.jpg"}):
        with pytest.raises(BrokenImageError) as by_pillow:
            load_image(image)
        with pytest.raises(BrokenImageError) as error:
            load_pixels(image)
        assert str(error.value) == str(by_pillow.value)


def test_a_damaged_jpeg_is_read_as_far_as_pillow_reads_it():
    content = bytearray(encoded(photo((256, 256)), "JPEG")["bytes"])
    content[5000:5040] = bytes(40)
    image = {"bytes": bytes(content), "path": None}
    with pytest.raises(ValueError, match="Corrupt"):
        simplejpeg.decode_jpeg(image["bytes"])
    assert np.array_equal(np.asarray(load_pixels(image)), np.asarray(load_image(image)))


def test_pixels_need_no_simplejpeg(monkeypatch):
    image = encoded(photo((97, 131)), "JPEG")
    expected = load_pixels(image)
    monkeypatch.setattr(images, "decode_jpeg", None)
    assert np.array_equal(np.asarray(load_pixels(image)), expected)


def _pixel_values(processor, images):
    return normalize(processor, torch.stack([process_image(processor, image) for image in images]))


def test_reduced_decoding_leaves_the_pixels_as_good_as_they_were():
    processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64)
    assert decoding_size(processor) == 128
    image = encoded(photo((640, 512)), "JPEG", quality=90)
    assert load_image(image, decoding_size(processor)).size == (160, 128)
    full, reduced = (_pixel_values(processor, [load_image(image, size)]) for size in (None, 128))
    levels = (full - reduced).abs() * torch.tensor(processor.image_std)[:, None, None] * 255
    assert levels.mean() < 1.5 and levels.max() < 16


@pytest.mark.parametrize("size", [(640, 480), (97, 131), (64, 64), (40, 30), (65, 64)])
@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_pixels_are_those_of_the_image_processor_to_one_level(size, resample):
    processor = CLIPImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 56}, resample=resample
    )
    images = [photo(size), photo(size[::-1])]
    expected = processor(images, return_tensors="pt")["pixel_values"]
    levels = (
        (_pixel_values(processor, images) - expected).abs() * torch.tensor(processor.image_std)[:, None, None] * 255
    )
    assert levels.max() <= 1.01 and levels.mean() < 0.05


@pytest.mark.parametrize("size", [(97, 131), (131, 97), (5, 300), (300, 5)])
def test_a_large_image_is_copied_in_bands(monkeypatch, size):
    processor = CLIPImageProcessor(size={"shortest_edge": 4}, crop_size=4)
    images = [photo(size)]
    whole = _pixel_values(processor, images)
    monkeypatch.setattr(data_collator, "BAND", 250)
    assert torch.equal(_pixel_values(processor, images), whole)


@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=32),
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16, do_normalize=False),
        SiglipImageProcessor(size={"height": 16, "width": 16}),
    ],
    ids=["padded", "not normalised", "another kind"],
)
def test_unusual_image_processors_are_called(processor):
    images = [photo((40, 30)), photo((30, 50)), photo((40, 30))]
    expected = processor(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(_pixel_values(processor, images), expected)
    assert torch.equal(_pixel_values(processor, map(np.array, images)), expected)
