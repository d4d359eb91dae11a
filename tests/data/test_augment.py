"""The second view of images and captions: what it draws and what it keeps."""

from random import Random

import numpy as np
import pytest
from PIL import Image

from modeling_cyclip.data.augment import SecondView, augment_caption, augment_image
from modeling_cyclip.data.samples import CaptionedSamples


CAPTION = "Two dogs run over the wet sand of a wide beach, at dusk"


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def synonyms(tmp_path):
    path = tmp_path / "synonyms.txt"
    path.write_text("Dog, hound\n\nbeach, shore, sea shore\n", encoding="utf-8")
    return path


def pixels(image):
    return np.asarray(image).tobytes()


def test_the_same_draws_give_the_same_view_and_others_another(image):
    views = [SecondView()(image, CAPTION, Random(seed)) for seed in (0, 0, 1)]
    assert pixels(views[0][0]) == pixels(views[1][0]) != pixels(views[2][0])
    assert len({SecondView()(image, CAPTION, Random(seed))[1] for seed in range(20)}) > 10


def test_a_view_is_a_part_of_the_image_and_leaves_the_image_as_it_is(image):
    before = pixels(image)
    for seed in range(50):
        view = augment_image(image, Random(seed))
        assert view.mode == "RGB" and view.width <= 60 and view.height <= 40
        assert 0.3 < view.width * view.height / 2400 <= 1.0
    assert pixels(image) == before


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_thin_images_have_views(size):
    for seed in range(20):
        view = augment_image(Image.new("RGB", size), Random(seed))
        assert view.width >= 1 and view.height >= 1


def test_a_tenth_of_the_words_swap_places_or_are_left_out():
    words, seen = CAPTION.split(), set()  # 13: one is changed
    for seed in range(50):
        changed = augment_caption(CAPTION, {}, Random(seed)).split()
        if len(changed) == len(words):
            assert sorted(changed) == sorted(words)
            assert sum(a != b for a, b in zip(changed, words, strict=True)) == 2
            seen.add("swapped")
        else:
            assert len(changed) == len(words) - 1 and set(changed) < set(words)
            seen.add("left out")
    assert seen == {"swapped", "left out"}


@pytest.mark.parametrize("caption", ["dog", "a dog", " a  dog ", "a\tdog", "...", "a " * 200])
def test_no_caption_ends_empty(caption):
    for seed in range(50):
        assert augment_caption(caption, {}, Random(seed)).strip()


def test_a_single_word_and_an_empty_caption_stay():
    assert augment_caption("dog", {}, Random(0)) == "dog" and augment_caption("", {}, Random(0)) == ""


def test_synonyms_stand_in_for_words_whatever_their_case_and_punctuation(image, synonyms):
    view = SecondView(synonyms)
    captions = {view(image, "DOG!", Random(seed))[1] for seed in range(10)}
    assert captions == {"hound!"}
    captions = {view(image, CAPTION, Random(seed))[1] for seed in range(200)}
    assert CAPTION.replace("beach,", "sea shore,") in captions and CAPTION.replace("beach,", "shore,") in captions


@pytest.mark.parametrize("content, message", [(None, "cannot be read"), ("car\n\n", "has no synonyms")])
def test_files_without_synonyms_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "synonyms.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        SecondView(tmp_path / "synonyms.txt")


def test_views_depend_on_seed_epoch_and_row_alone(image):
    rows = [{"image": image, "caption": CAPTION}] * 6
    keys = [(epoch, index) for epoch in (0, 1) for index in range(6)]

    def view(samples, key):
        sample = samples[key]
        assert sample["caption"] == CAPTION and pixels(sample["image"]) == pixels(image)
        return sample["augmented_caption"], pixels(sample["augmented_image"])

    views = [view(CaptionedSamples(rows, 0, augment=SecondView()), key) for key in keys]
    samples = CaptionedSamples(rows, 0, augment=SecondView())
    assert [view(samples, key) for key in reversed(keys)] == views[::-1]
    assert len(set(views)) == len(keys)
    assert view(CaptionedSamples(rows, 1, augment=SecondView()), keys[0]) != views[0]
