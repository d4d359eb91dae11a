import numpy as np
import pytest
import torch

from modeling_cyclip.evaluation.intervals import Measure, bootstrap_interval


def slow_bootstrap(scores, classes, resamples, level=0.95):
    """Items drawn one by one."""
    generator = np.random.default_rng(1)
    means = []
    for _ in range(resamples):
        rows = generator.integers(len(scores), size=len(scores))
        drawn = (
            [scores[rows]] if classes is None else [scores[rows][classes[rows] == c] for c in np.unique(classes[rows])]
        )
        means.append(np.mean([part.mean() for part in drawn]))
    return np.quantile(means, [(1 - level) / 2, (1 + level) / 2])


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("kind", ["binary", "difference", "continuous"])
def test_interval_equals_resampling_item_by_item(kind, by_class):
    generator = torch.Generator().manual_seed(0)
    scores = {
        "binary": torch.bernoulli(torch.full((80,), 0.3), generator=generator),
        "difference": torch.randint(-1, 2, (80,), generator=generator).float(),
        "continuous": torch.rand(80, generator=generator),
    }[kind]
    classes = torch.randint(4, (80,), generator=generator) if by_class else None
    ours = bootstrap_interval(scores, classes, resamples=20_000)
    slow = slow_bootstrap(scores.numpy(), None if classes is None else classes.numpy(), resamples=5_000)
    assert ours == pytest.approx(slow, abs=0.02)


def test_value_is_the_mean_over_items_or_over_the_classes_that_have_items():
    scores, classes = torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([0, 0, 0, 3])
    assert Measure(scores).value == 0.5
    assert Measure(scores, classes).value == pytest.approx((1 / 3 + 1) / 2)


def test_interval_is_the_same_each_time_and_narrow_for_certain_items():
    measure = Measure(torch.rand(100, generator=torch.Generator().manual_seed(0)))
    assert measure.interval() == measure.interval()
    assert measure.interval(seed=1) != measure.interval(seed=2)
    assert Measure(torch.ones(10)).interval() == (1.0, 1.0)


def test_paired_interval_is_narrower_than_that_of_either():
    generator = torch.Generator().manual_seed(0)
    first = torch.bernoulli(torch.full((500,), 0.5), generator=generator)
    second = first.clone()
    second[:10] = 1 - second[:10]
    difference = Measure(first).minus(Measure(second))
    low, high = difference.interval()
    assert low <= difference.value <= high
    assert high - low < 0.05 < Measure(first).interval()[1] - Measure(first).interval()[0]


def test_faults():
    with pytest.raises(ValueError, match="no test items"):
        Measure(torch.empty(0))
    with pytest.raises(ValueError, match="same items"):
        Measure(torch.ones(3)).minus(Measure(torch.ones(4)))
