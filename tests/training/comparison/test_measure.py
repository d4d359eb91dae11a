"""What a comparison measures, checked before anything is trained."""

import pytest

from training.comparison.arguments import ComparisonArguments
from training.comparison.measure import load_evaluations


@pytest.mark.parametrize(
    "evaluation, message",
    [
        ("emoji", "must map arguments"),
        ({"dataset": "x", "compare_to": "y"}, "takes no compare_to .* leave it out of test"),
        ({"dataset": "x", "templates": "missing.txt"}, "evaluation test: --templates missing.txt cannot be read"),
    ],
)
def test_bad_evaluations_are_one_error(evaluation, message):
    with pytest.raises(ValueError, match=message):
        load_evaluations(ComparisonArguments(recipe="r", output_dir="o", evaluations={"test": evaluation}))
