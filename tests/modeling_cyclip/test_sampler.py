"""The order of samples: a function of seed and epoch."""

import pytest

from modeling_cyclip.sampler import EpochSampler, keyed_seed


def epoch_keys(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def test_an_epoch_is_a_shuffle_cut_to_whole_batches():
    keys = epoch_keys(EpochSampler(103, batch_size=10, seed=0), epoch=3)
    assert len(keys) == 100
    assert {epoch for epoch, _ in keys} == {3}
    assert len({index for _, index in keys}) == 100 and {index for _, index in keys} <= set(range(103))


def test_order_is_a_function_of_seed_and_epoch():
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
