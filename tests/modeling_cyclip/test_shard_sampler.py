"""The order of samples in shards: few shards at a time, all samples once, no caption twice in a batch."""

import numpy as np
import pytest

from modeling_cyclip.shard_sampler import ShardSampler, UniqueCaptionShardSampler
from modeling_cyclip.unique_captions import UniqueCaptionSampler


SHARDS = np.repeat(np.arange(12), 25)  # 300 samples


def epoch(sampler, number):
    sampler.set_epoch(number)
    keys = list(sampler)
    assert {epoch for epoch, _ in keys} == {number} and len(keys) == len(sampler)
    return [index for _, index in keys]


def test_every_sample_comes_once_in_windows_of_shuffled_shards():
    sampler = ShardSampler(SHARDS, batch_size=10, seed=0, window=3)
    orders = [epoch(sampler, number) for number in range(3)]
    windows = []
    for order in orders:
        assert sorted(order) == list(range(300))
        windows.append([set(SHARDS[order[start : start + 75]]) for start in range(0, 300, 75)])
        assert all(len(window) == 3 for window in windows[-1])
        # Within a window the shards mix: its first batch has samples of each.
        assert all(len(set(SHARDS[order[start : start + 25]])) == 3 for start in range(0, 300, 75))
    assert windows[0] != windows[1]
    assert epoch(ShardSampler(SHARDS, 10, seed=0, window=3), 2) == orders[2]
    assert epoch(ShardSampler(SHARDS, 10, seed=1, window=3), 2) != orders[2]


def test_the_order_is_that_of_any_batch_size_and_the_tail_is_left_out():
    whole = epoch(ShardSampler(SHARDS, 10, seed=0, window=3), 1)
    assert epoch(ShardSampler(SHARDS, 64, seed=0, window=3), 1) == whole[:256]


@pytest.mark.parametrize("num_captions", [300, 150, 40, 12])
@pytest.mark.parametrize("repeated", [0, 20, 100])
def test_no_batch_repeats_a_caption(num_captions, repeated):
    random = np.random.default_rng(num_captions + repeated)
    captions = [f"caption {number}" for number in random.integers(num_captions, size=300)]
    captions[:repeated] = ["the same"] * repeated
    captions[40] = [captions[40], "another", "the same"]
    sampler = UniqueCaptionShardSampler(captions, SHARDS, batch_size=10, seed=0, window=3)
    assert len(sampler) == len(UniqueCaptionSampler(captions, 10, seed=0))
    for number in range(4):
        order = epoch(sampler, number)
        assert len(set(order)) == len(order)
        numbers = sampler.drawn_captions()[order].reshape(-1, 10)
        assert all(len(set(batch)) == 10 for batch in numbers)
        assert order == epoch(sampler, number)


def test_captions_that_repeat_a_little_leave_the_windows_nearly_alone():
    captions = [f"caption {number}" for number in np.random.default_rng(0).integers(600, size=300)]
    sampler = UniqueCaptionShardSampler(captions, SHARDS, batch_size=10, seed=0, window=3)
    order = epoch(sampler, 0)
    apart = [len(set(SHARDS[order[start : start + 70]])) for start in range(0, 300, 75)]
    plain = len(set(SHARDS[epoch(UniqueCaptionSampler(captions, 10, seed=0), 0)[:70]]))
    assert max(apart) <= 6 and plain == 12
