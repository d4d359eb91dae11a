"""The order of samples: a function of seed and epoch, few shards at a time, no caption twice in a batch."""

import hashlib
import json
import random
from collections import Counter
from unittest import mock

import numpy as np
import pytest
from datasets import Dataset

from modeling_cyclip.data import sampler as sampler_module
from modeling_cyclip.data.sampler import EpochSampler, keyed_seed, make_train_sampler
from modeling_cyclip.data.samples import CaptionedSamples
from modeling_cyclip.data.tokenizer import train_tokenizer
from modeling_cyclip.health import caption_keys


SHARDS = np.repeat(np.arange(12), 25)  # 300 samples


def unique(captions, batch_size, seed):
    return EpochSampler(len(captions), batch_size, seed, captions=captions)


def in_windows(batch_size, seed, captions=None):
    return EpochSampler(len(SHARDS), batch_size, seed, captions=captions, shards=SHARDS, window=3)


def epoch_keys(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def epoch(sampler, number):
    keys = epoch_keys(sampler, number)
    assert {epoch for epoch, _ in keys} == {number} and len(keys) == len(sampler)
    return [index for _, index in keys]


def batches(sampler, epoch):
    sampler.set_epoch(epoch)
    keys = list(sampler)
    return [keys[start : start + sampler.batch_size] for start in range(0, len(keys), sampler.batch_size)]


def test_an_epoch_is_a_shuffle_cut_to_whole_batches():
    keys = epoch_keys(EpochSampler(103, batch_size=10, seed=0), epoch=3)
    assert len(keys) == 100
    assert {epoch for epoch, _ in keys} == {3}
    assert len({index for _, index in keys}) == 100 and {index for _, index in keys} <= set(range(103))


def test_the_order_is_a_function_of_seed_and_epoch():
    order = epoch_keys(EpochSampler(64, 8, seed=1), 5)
    assert epoch_keys(EpochSampler(64, 8, seed=1), 5) == order
    assert epoch_keys(EpochSampler(64, 8, seed=2), 5) != order
    assert [index for _, index in epoch_keys(EpochSampler(64, 8, seed=1), 6)] != [index for _, index in order]


def test_order_does_not_depend_on_how_a_step_is_divided():
    assert epoch_keys(EpochSampler(64, 8, seed=1), 0) == epoch_keys(EpochSampler(64, 32, seed=1), 0)


def test_keyed_seed_is_pinned():
    # Resuming a run on another machine or version depends on it.
    assert keyed_seed(42, 0, 7) == 3004224276326877345


def test_a_dataset_without_one_batch_is_refused():
    with pytest.raises(ValueError, match="per_device_train_batch_size"):
        EpochSampler(7, 8, seed=0)


def test_orders_are_pinned():
    # Those of version 0.1.0 as it was with four sampler classes: a resumed run must see the same.
    captions = [f"caption {number}" for number in np.random.default_rng(0).integers(200, size=300)]
    crowded = ["x"] * 60 + captions[60:]
    pinned = {
        "41743485aee8b89a": EpochSampler(300, 10, 7),
        "54cea84820b15262": in_windows(10, 7),
        "87867057c44e97e1": unique(captions, 10, 7),
        "c2d4ce62a3301bb2": in_windows(10, 7, captions),
        "a23b5c4cb440ea74": in_windows(10, 7, crowded),  # too crowded for windows: as without
    }
    for digest, sampler in pinned.items():
        assert hashlib.sha256(json.dumps(epoch(sampler, 3)).encode()).hexdigest()[:16] == digest
    assert epoch(unique(crowded, 10, 7), 3) == epoch(in_windows(10, 7, crowded), 3)


def skewed_captions():
    """One caption of 40 images, some of several, many of one."""
    generator = random.Random(0)
    return ["common"] * 40 + [f"pair {index // 3}" for index in range(60)] + [
        [f"own {index}", f"pair {generator.randrange(20)}"] for index in range(100)
    ]  # fmt: skip


@pytest.mark.parametrize("batch_size", [4, 8, 16])
def test_no_batch_repeats_a_caption_that_is_drawn(batch_size):
    captions = skewed_captions()
    sampler = unique(captions, batch_size, seed=3)
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
    with mock.patch("modeling_cyclip.data.samples.load_image", lambda *args, **kwargs: None):
        return samples[epoch, index]["caption"]


def test_distinct_captions_lose_nothing():
    sampler = unique([f"caption {index}" for index in range(100)], 8, seed=0)
    assert len(sampler) == 96


def test_the_number_of_batches_is_the_largest_possible():
    # 6 batches of 2 would need the repeated caption in 6 of them with 4 others for 6 places.
    assert len(unique(["same"] * 8 + ["a", "b", "c", "d"], 2, seed=0)) // 2 == 4


def shared_captions():
    """Three captions that 30 images share, beside two of each image's own: one of them may be drawn 30 times, and is not."""
    return [
        [*(f"class {index // 30}, phrase {phrase}" for phrase in range(3)), f"own {index}", f"own {index} again"]
        for index in range(300)
    ]


@pytest.mark.parametrize("make", [unique, lambda captions, *numbers: in_windows(*numbers, captions)])
def test_captions_that_could_be_drawn_more_often_than_they_are_lose_nothing(make):
    sampler = make(shared_captions(), 20, 0)
    assert len(sampler) == 300
    for number in range(8):
        assert all(count == 1 for batch in drawn_by_batch(sampler, number) for count in Counter(batch).values())


@pytest.mark.parametrize("make", [unique, lambda captions, *numbers: in_windows(*numbers, captions)])
def test_an_epoch_that_draws_less_evenly_fills_its_last_places(make, monkeypatch):
    monkeypatch.setattr(sampler_module, "EPOCHS_LOOKED_AT", 1)
    sampler = make(shared_captions(), 40, 0)
    repeats = []
    for number in range(20):
        order = epoch(sampler, number)
        assert len(set(order)) == len(order) == len(sampler)
        repeats.append(sum(40 - len(set(batch)) for batch in drawn_by_batch(sampler, number)))
    assert repeats[0] == 0 and 0 < max(repeats) <= 15


def drawn_by_batch(sampler, number):
    order = np.array(epoch(sampler, number))
    return sampler.captions.drawn(sampler.seed, number, order).reshape(-1, sampler.batch_size).tolist()


def test_a_batch_mixes_what_lay_together():
    sampler = unique([f"caption {index}" for index in range(1000)], 10, seed=0)
    first = batches(sampler, 0)[0]
    assert max(index for _, index in first) - min(index for _, index in first) > 300


def test_batches_without_repeats_are_a_function_of_seed_and_epoch():
    captions = skewed_captions()
    order = batches(unique(captions, 8, seed=1), 2)
    assert order == batches(unique(captions, 8, seed=1), 2)
    assert order != batches(unique(captions, 8, seed=2), 2)


def test_captions_that_the_tokenizer_does_not_tell_apart_are_one():
    captions = [f"{a} {b}" for b in ("dog", "cat", "owl", "cow") for a in ("A", "a", "The", "the ")] * 8
    tokenizer = train_tokenizer(captions, 600, 16)
    sampler = unique(captions, 8, seed=0)
    for batch in batches(sampler, 0):
        tokens = tokenizer([captions[index] for _, index in batch], padding=True, return_tensors="pt")
        assert len(caption_keys(tokens.input_ids, tokens.attention_mask).unique()) == 8


def test_every_sample_comes_once_in_windows_of_shuffled_shards():
    sampler = in_windows(10, seed=0)
    orders = [epoch(sampler, number) for number in range(3)]
    windows = []
    for order in orders:
        assert sorted(order) == list(range(300))
        windows.append([set(SHARDS[order[start : start + 75]]) for start in range(0, 300, 75)])
        assert all(len(window) == 3 for window in windows[-1])
        # Within a window the shards mix: its first batch has samples of each.
        assert all(len(set(SHARDS[order[start : start + 25]])) == 3 for start in range(0, 300, 75))
    assert windows[0] != windows[1]
    assert epoch(in_windows(10, seed=0), 2) == orders[2]
    assert epoch(in_windows(10, seed=1), 2) != orders[2]


def test_the_order_is_that_of_any_batch_size_and_the_tail_is_left_out():
    whole = epoch(in_windows(10, seed=0), 1)
    assert epoch(in_windows(64, seed=0), 1) == whole[:256]


@pytest.mark.parametrize("num_captions", [300, 150, 40, 12])
@pytest.mark.parametrize("repeated", [0, 20, 100])
def test_no_batch_repeats_a_caption(num_captions, repeated):
    random = np.random.default_rng(num_captions + repeated)
    captions = [f"caption {number}" for number in random.integers(num_captions, size=300)]
    captions[:repeated] = ["the same"] * repeated
    captions[40] = [captions[40], "another", "the same"]
    sampler = in_windows(10, seed=0, captions=captions)
    assert len(sampler) == len(unique(captions, 10, seed=0))
    for number in range(4):
        order = epoch(sampler, number)
        assert len(set(order)) == len(order)
        numbers = sampler.captions.drawn(0, number, np.array(order)).reshape(-1, 10)
        assert all(len(set(batch)) == 10 for batch in numbers)
        assert order == epoch(sampler, number)


def test_captions_that_repeat_a_little_leave_the_windows_nearly_alone():
    captions = [f"caption {number}" for number in np.random.default_rng(0).integers(600, size=300)]
    sampler = in_windows(10, seed=0, captions=captions)
    order = epoch(sampler, 0)
    apart = [len(set(SHARDS[order[start : start + 70]])) for start in range(0, 300, 75)]
    plain = len(set(SHARDS[epoch(unique(captions, 10, seed=0), 0)[:70]]))
    assert max(apart) <= 6 and plain == 12


def table(captions):
    return Dataset.from_dict({"image": [f"{row}.png" for row in range(len(captions))], "caption": captions})


def test_captions_of_a_table_are_kept_apart():
    captions = [f"caption {row % 1500}" for row in range(2500)]
    sampler = make_train_sampler(table(captions), 8, 0, no_duplicate_captions=True)
    assert sampler.captions is not None
    assert [sampler.captions.flat[row] for row in (0, 1499, 1500, 2499)] == [0, 1499, 0, 999]


def test_captions_of_a_transform_are_not_kept_apart_and_that_is_said(monkeypatch):
    warnings = []
    monkeypatch.setattr(sampler_module.logger, "warning", warnings.append)
    rows = table(["cat", "dog"] * 20).rename_column("caption", "text")
    rows.set_transform(lambda batch: {"image": batch["image"], "caption": batch["text"]})
    assert make_train_sampler(rows, 8, 0, no_duplicate_captions=True).captions is None
    assert "come of a transform" in warnings[0]


def test_too_few_captions_are_drawn_with_repeats_and_a_warning(monkeypatch):
    warnings = []
    monkeypatch.setattr(sampler_module.logger, "warning", warnings.append)
    sampler = make_train_sampler(table(["cat", "dog"] * 20), 8, 0, no_duplicate_captions=True)
    assert sampler.captions is None and len(sampler) == 40
    assert "has no effect here" in warnings[0]
