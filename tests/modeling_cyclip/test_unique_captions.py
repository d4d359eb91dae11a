"""Batches without repeated captions."""

import random
from collections import Counter

import pytest

from modeling_cyclip.samples import CaptionedSamples
from modeling_cyclip.unique_captions import UniqueCaptionSampler


def batches(sampler, epoch):
    sampler.set_epoch(epoch)
    keys = list(sampler)
    return [keys[start : start + sampler.batch_size] for start in range(0, len(keys), sampler.batch_size)]


def skewed_captions():
    """One caption of 40 images, some of several, many of one."""
    generator = random.Random(0)
    return ["common"] * 40 + [f"pair {index // 3}" for index in range(60)] + [
        [f"own {index}", f"pair {generator.randrange(20)}"] for index in range(100)
    ]  # fmt: skip


@pytest.mark.parametrize("batch_size", [4, 8, 16])
def test_no_batch_repeats_a_caption_that_is_drawn(batch_size):
    captions = skewed_captions()
    sampler = UniqueCaptionSampler(captions, batch_size, seed=3)
    samples = CaptionedSamples([{"image": None, "caption": caption} for caption in captions], seed=3)
    samples_drawn = Counter()
    for epoch in range(4):
        epoch_batches = batches(sampler, epoch)
        assert len(epoch_batches) == len(sampler) // batch_size > 0
        seen = [index for batch in epoch_batches for _, index in batch]
        assert len(seen) == len(set(seen))
        samples_drawn.update(seen)
        for batch in epoch_batches:
            drawn = [drawn_caption(samples, *key) for key in batch]
            assert len(set(drawn)) == batch_size
    # Those that sit out are others each epoch.
    assert len(samples_drawn) == len(captions) or max(samples_drawn.values()) > min(samples_drawn.values())


def drawn_caption(samples, epoch, index):
    from unittest import mock

    with mock.patch("modeling_cyclip.samples.load_image", lambda *args, **kwargs: None):
        return samples[epoch, index]["caption"]


def test_distinct_captions_lose_nothing():
    sampler = UniqueCaptionSampler([f"caption {index}" for index in range(100)], 8, seed=0)
    assert len(sampler) == 96


def test_the_number_of_batches_is_the_largest_possible():
    # 6 batches of 2 would need the repeated caption in 6 of them with 4 others for 6 places.
    assert len(UniqueCaptionSampler(["same"] * 8 + ["a", "b", "c", "d"], 2, seed=0)) // 2 == 4


def test_a_batch_mixes_what_lay_together():
    sampler = UniqueCaptionSampler([f"caption {index}" for index in range(1000)], 10, seed=0)
    first = batches(sampler, 0)[0]
    assert max(index for _, index in first) - min(index for _, index in first) > 300


def test_order_is_a_function_of_seed_and_epoch():
    captions = skewed_captions()
    order = batches(UniqueCaptionSampler(captions, 8, seed=1), 2)
    assert order == batches(UniqueCaptionSampler(captions, 8, seed=1), 2)
    assert order != batches(UniqueCaptionSampler(captions, 8, seed=2), 2)
