"""What a comparison measures, checked before anything is trained."""

import datasets
import pytest

from tests.conftest import coloured_image
from training.comparison.arguments import ComparisonArguments
from training.comparison.measure import load_evaluations


def test_shifted_sets_of_one_name_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("test", "a/blurred", "b/blurred"):
        for colour in ("red", "blue"):
            folder = tmp_path / name / "test" / colour
            folder.mkdir(parents=True)
            coloured_image(colour).save(folder / "0.png")
    shifts = [str(tmp_path / side / "blurred") for side in "ab"]
    evaluation = {"dataset": str(tmp_path / "test"), "shift_datasets": shifts, "tasks": ["shift"]}
    with pytest.raises(ValueError, match=r"different names, got blurred \[test\], blurred \[test\]"):
        load_evaluations(ComparisonArguments(recipe="r", output_dir="o", evaluations={"test": evaluation}))


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
