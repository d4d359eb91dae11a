"""What a comparison measures, checked before anything is trained, and what may be concluded from several seeds."""

import json
import math
from types import SimpleNamespace

import datasets
import pytest
import torch

from modeling_cyclip.comparison.measure import (
    compare,
    difference,
    load_evaluations,
    mean_and_std,
    measure,
    with_means,
    without_means,
)
from modeling_cyclip.comparison.runs import ComparisonArguments, Run
from modeling_cyclip.evaluation.intervals import Measure
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
        "modeling_cyclip.comparison.measure.measure_embedded",
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
    (kept,), other = (tmp_path / "evaluation").iterdir(), tmp_path / "test" / "zeroshot_classification_templates.txt"
    assert kept.stat().st_mode == other.stat().st_mode


def test_interval_over_items_is_that_of_the_paired_difference():
    generator = torch.Generator().manual_seed(0)
    baseline = (torch.rand(4000, generator=generator) < 0.5).float()
    better = baseline.clone()
    better[:400] = 1  # the arms agree on all other items
    differs = difference([Measure(better)], [Measure(baseline)])
    gained = better - baseline
    half = 1.96 * gained.std().item() / math.sqrt(4000)
    assert differs.value == pytest.approx(gained.mean().item())
    assert differs.items == pytest.approx((differs.value - half, differs.value + half), abs=0.1 * half)


def test_interval_over_seeds_is_students():
    figures, baseline = [0.50, 0.53, 0.56], [0.50, 0.51, 0.52]
    differs = difference(figures, baseline)
    # Differences 0, 0.02, 0.04: mean 0.02, deviation 0.02, and 4.3027 is the 97.5 % point of t with 2 degrees of freedom.
    half = 4.3027 * 0.02 / math.sqrt(3)
    assert differs.seeds == pytest.approx((0.02 - half, 0.02 + half), abs=1e-5)
    assert differs.items is None


def test_mean_and_deviation_over_seeds():
    assert mean_and_std([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_and_std([1.0]) == (1.0, None)


@pytest.mark.parametrize(
    "gained, seeds, verdict",
    [
        ([0.0, 0.0, 0.0], 3, "no difference shown: the interval over test items includes zero"),
        ([0.30, 0.31, 0.32], 3, "higher"),
        ([-0.30, -0.31, -0.32], 3, "lower"),
        (
            [0.60, 0.02, 0.02],
            3,
            "higher for these models, but no difference shown: the interval over seeds includes zero",
        ),
        ([0.3], 1, "higher with this one seed, which says nothing of the next"),
    ],
)
def test_verdict_says_plainly_what_is_not_shown(gained, seeds, verdict):
    generator = torch.Generator().manual_seed(1)
    baseline, figures = [], []
    for share in gained:
        right = (torch.rand(1000, generator=generator) < 0.3).float()
        baseline.append(Measure(right))
        changed = right.clone()
        wrong_or_right = (right == (0 if share > 0 else 1)).nonzero()[:, 0]
        changed[wrong_or_right[: int(abs(share) * 1000)]] = float(share > 0)
        figures.append(Measure(changed))
    assert len(figures) == seeds
    assert difference(figures, baseline).verdict == verdict


def test_figures_with_and_without_the_modalities_means_are_told_apart():
    results = {"zero_shot": {"top1": 0.5}, "zero_shot, centred": {"top1": 0.6}, "linear_probe": {"accuracy": 0.7}}
    assert with_means(results) == {"zero_shot": {"top1": 0.5}, "linear_probe": {"accuracy": 0.7}}
    assert without_means(results) == {"zero_shot": {"top1": 0.6}}


HEALTHY = {
    "loss": 3.0, "contrastive_loss": 3.0, "logit_scale": 15.0, "learning_rate": 5e-4, "image_cosine": 0.4,
    "text_cosine": 0.6, "repeated_captions": 0.0,
}  # fmt: skip
COLLAPSED = {**HEALTHY, "contrastive_loss": math.log(128), "loss": math.log(128) + 0.1, "image_cosine": 0.9995}


@pytest.fixture
def compared(tmp_path):
    """Compares trainings that leave these logs behind, of which all have the same scores: by arm and seed."""

    def results(logs: dict[str, list[list[dict]]], evaluations=(), **training) -> dict:
        runs, measured = [], {}
        for arm, by_seed in logs.items():
            for seed, log in enumerate(by_seed):
                run = Run(arm, seed, None, tmp_path / f"{arm}{seed}", ())
                run.folder.mkdir()
                state = {"log_history": [*log, {"train_runtime": 1.0}], "train_batch_size": 64}
                weight = 0.0 if arm == "CLIP" else 0.25
                contents = {
                    "trainer_state.json": state,
                    "config.json": {"inmodal_cyclic_weight": weight, "crossmodal_cyclic_weight": weight},
                    "run.json": {
                        "processes": 2, "training": training, "training_pairs": 9, "hardware": "", "environment": {},
                        "commit": "",
                    },
                }  # fmt: skip
                for name, content in contents.items():
                    (run.folder / name).write_text(json.dumps(content))
                runs.append(run)
                score = Measure((torch.arange(50) % (5 if arm == "CLIP" else 2) == 0).float())
                measured[run] = {"test": {"zero_shot": {"top1": score}}}
        arms = {arm: {} for arm in logs}
        args = ComparisonArguments(recipe="r", output_dir="o", arms=arms, evaluations={"test": {}})
        return compare(args, runs, evaluations, measured, "cyclip compare")

    return results


def verdict(results: dict, arm: str) -> str:
    return results["results"]["test"]["zero_shot"]["top1"][arm]["difference"]["verdict"]


def test_an_arm_that_did_not_train_gets_that_for_a_verdict(compared):
    results = compared(
        {"CLIP": [[HEALTHY] * 2], "CyCLIP": [[HEALTHY, COLLAPSED]], "other": [[HEALTHY, *[COLLAPSED] * 5]]}
    )
    assert verdict(results, "CyCLIP").startswith("higher")  # it is not known whether the one log is a bad batch
    assert verdict(results, "other") == (
        "other did not train: the contrastive loss (4.85) stays at ln(128), that of guessing: nothing is learnt, set "
        "`cyclic_start_ratio=0.5`, or lower the cyclic weights"
    )
    assert list(results["health"]) == ["other"]
    assert "mean pairwise cosine is 0.9995" in " ".join(results["health"]["other"])


def test_nothing_is_concluded_from_a_baseline_that_did_not_train(compared):
    results = compared({"CLIP": [[COLLAPSED], [HEALTHY]], "CyCLIP": [[HEALTHY], [HEALTHY]]})
    assert verdict(results, "CyCLIP").startswith("CLIP did not train with seed 0: the contrastive loss")
    assert "check `learning_rate`" in verdict(results, "CyCLIP")


def test_an_arm_is_not_blamed_for_what_the_baseline_does_too(compared):
    both = compared({"CLIP": [[COLLAPSED] * 3], "CyCLIP": [[COLLAPSED] * 3]})
    assert verdict(both, "CyCLIP").startswith("CLIP did not train: ")


def test_test_images_among_the_reference_images_are_noted(compared):
    sets = {name: SimpleNamespace(shared=shared, shifts=()) for name, shared in (("a", (3, 1000)), ("b", (0, 1000)))}
    evaluations = [SimpleNamespace(name=name, data=data, arguments={}) for name, data in sets.items()]
    results = compared({"CLIP": [[HEALTHY]]}, evaluations)
    assert results["notes"] == ["a: 3 of 1,000 test images are among the reference images."]


def test_advice_is_not_what_was_done(compared):
    results = compared({"CLIP": [[HEALTHY]], "CyCLIP": [[COLLAPSED] * 3]}, cyclic_start_ratio=0.5)
    assert "check `learning_rate`" in verdict(results, "CyCLIP")


def test_a_training_without_logs_is_said(compared):
    results = compared({"CLIP": [[HEALTHY]], "CyCLIP": [[]]})
    assert results["health"] == {
        "CyCLIP": [
            "CyCLIP, seed 0: No loss was logged, so that it is not known whether it trained. Set lower `logging_steps`."
        ]
    }
