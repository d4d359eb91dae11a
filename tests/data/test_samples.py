"""Samples of a captioned dataset: captions drawn, broken images replaced and reported."""

import pytest
from PIL import Image

from modeling_cyclip.data.samples import CaptionedSamples, SampleCollator


def rows(num_rows, broken=()):
    return [
        {
            "image": b"no image" if index in broken else Image.new("RGB", (4, 4), (index, 0, 0)),
            "caption": [f"{index}a", f"{index}b"],
        }
        for index in range(num_rows)
    ]


def test_one_caption_is_drawn_each_epoch_the_same_for_the_same_key():
    samples = CaptionedSamples(rows(50), seed=0)
    epochs = [[samples[epoch, index]["caption"] for index in range(50)] for epoch in range(2)]
    assert epochs[0] == [samples[0, index]["caption"] for index in range(50)]
    assert epochs[0] != epochs[1]
    assert {caption[-1] for caption in epochs[0]} == {"a", "b"}


def test_evaluation_takes_the_first_caption():
    assert CaptionedSamples(rows(3), seed=0)[2]["caption"] == "2a"


def test_broken_images_are_replaced_by_samples_that_are_not_in_the_batch():
    broken = set(range(0, 50, 3))
    samples = CaptionedSamples(rows(50, broken), seed=0)
    keys = [(0, index) for index in range(20)]
    batch = samples.__getitems__(keys)

    indices = [sample["index"] for sample in batch]
    assert len(set(indices)) == 20 and not broken & set(indices)
    for sample in batch:
        assert (
            sample["caption"][:-1] == str(sample["index"]) and sample["image"].getpixel((0, 0))[0] == sample["index"]
        )
    reported = {index for sample in batch for index in sample["broken_images"]}
    assert broken & set(range(20)) <= reported <= broken
    assert [sample["index"] for sample in samples.__getitems__(keys)] == indices


def test_a_set_without_readable_images_ends_with_the_reason():
    with pytest.raises(ValueError, match=r"could not be read|No readable image"):
        CaptionedSamples(rows(8, broken=range(8)), seed=0).__getitems__(list(range(4)))


def test_collator_gets_images_and_captions_and_the_batch_says_where_they_came_from():
    samples = CaptionedSamples(rows(10, broken={1}), seed=0).__getitems__([0, 1])
    batch = SampleCollator(lambda features: {"features": features})(samples)
    assert [set(feature) for feature in batch["features"]] == [{"image", "caption"}] * 2
    assert batch["sample_index"].tolist() == [0, samples[1]["index"]]
    assert list(batch["broken_images"]) == [1]
