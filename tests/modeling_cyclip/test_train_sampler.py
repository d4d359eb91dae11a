"""Which sampler a training set gets."""

from datasets import Dataset

from modeling_cyclip import train_sampler
from modeling_cyclip.sampler import EpochSampler
from modeling_cyclip.train_sampler import make_train_sampler
from modeling_cyclip.unique_captions import UniqueCaptionSampler


def table(captions):
    return Dataset.from_dict({"image": [f"{row}.png" for row in range(len(captions))], "caption": captions})


def test_captions_of_a_table_are_kept_apart():
    captions = [f"caption {row % 1500}" for row in range(2500)]
    sampler = make_train_sampler(table(captions), 8, 0, no_duplicate_captions=True)
    assert isinstance(sampler, UniqueCaptionSampler)
    assert [sampler.flat[row] for row in (0, 1499, 1500, 2499)] == [0, 1499, 0, 999]


def test_too_few_captions_are_drawn_with_repeats_and_a_warning(monkeypatch):
    warnings = []
    monkeypatch.setattr(train_sampler.logger, "warning", warnings.append)
    sampler = make_train_sampler(table(["cat", "dog"] * 20), 8, 0, no_duplicate_captions=True)
    assert type(sampler) is EpochSampler and len(sampler) == 40
    assert "has no effect here" in warnings[0]
