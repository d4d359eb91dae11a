"""What a comparison measures, checked before anything is trained."""

import datasets
import pytest

from modeling_cyclip.comparison.measure import load_evaluations, measure
from modeling_cyclip.comparison.runs import ComparisonArguments, Run
from tests.conftest import coloured_image


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
        ({"dataset": "x", "templates": "missing.txt"}, "evaluation test: There is no file of templates missing.txt"),
    ],
)
def test_bad_evaluations_are_one_error(evaluation, message):
    with pytest.raises(ValueError, match=message):
        load_evaluations(ComparisonArguments(recipe="r", output_dir="o", evaluations={"test": evaluation}))


def test_kept_scores_are_those_of_the_data_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    calls = []
    monkeypatch.setattr("modeling_cyclip.comparison.measure.embeddings", lambda run, evaluation: None)
    monkeypatch.setattr(
        "modeling_cyclip.comparison.measure.run_protocols",
        lambda *_: {"zero_shot": {"top1": calls.append(0) or len(calls)}},
    )
    for colour in ("red", "blue"):
        (tmp_path / "test" / colour).mkdir(parents=True)
        coloured_image(colour).save(tmp_path / "test" / colour / "0.png")
    (tmp_path / "evaluation").mkdir()
    run = Run("CLIP", 0, None, tmp_path, ())
    args = ComparisonArguments(
        recipe="r", output_dir="o", evaluations={"test": {"dataset": str(tmp_path / "test"), "split": "train"}}
    )

    def top1() -> float:
        (evaluation,) = load_evaluations(args)
        return measure(run, evaluation)["zero_shot"]["top1"]

    assert [top1(), top1()] == [1, 1]
    coloured_image("red", 1).save(tmp_path / "test" / "red" / "1.png")
    assert [top1(), top1()] == [2, 2]
    (tmp_path / "test" / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    assert [top1(), top1()] == [3, 3]
