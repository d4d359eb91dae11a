"""benchmarks/train_at_once.py takes the steps that `cyclip train` takes."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from modeling_cyclip.commands import train
from modeling_cyclip.comparison.runs import ComparisonArguments, plan_runs
from modeling_cyclip.data.shapes import write_shapes


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ARMS = {
    "CLIP": {"inmodal_cyclic_weight": 0.0, "crossmodal_cyclic_weight": 0.0},
    "bounded": {"inmodal_cyclic_weight": 0.5, "crossmodal_cyclic_weight": 0.25, "cyclic_max_gradient_share": 0.2},
    "as published": {"cyclic_start_ratio": 0.0, "cyclic_warmup_ratio": 0.0, "cyclic_max_gradient_share": "inf"},
    "views": {"inmodal_contrastive": True},
}
# Of the last update, so that one that is missing shows.
LAST_RATE = 1e-3
LOGGED = ("loss", "contrastive_loss", "learning_rate", "logit_scale", "image_cosine", "epoch")


@pytest.fixture
def comparison(tmp_path):
    write_shapes(tmp_path / "data", num_train=64, num_test=6)
    recipe = {
        "dataset_name": str(tmp_path / "data/train"), "caption_column": "captions", "model_size": "pico", "vocab_size": 600,
        "per_device_train_batch_size": 16, "max_steps": 6, "logging_steps": 1, "warmup_steps": 2, "save_strategy": "no", "data_seed": 5,
        "use_cpu": True, "report_to": "none", "disable_tqdm": True, "learning_rate": 1e-3, "lr_scheduler_type": "constant_with_warmup",
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arguments = {
        "recipe": str(tmp_path / "recipe.yaml"),
        "arms": ARMS,
        "seeds": [3],
        "evaluations": {"shapes": {"dataset": "x"}},
    }
    return arguments


def logs(run):
    return [log for log in run.log_history() if "loss" in log]


def train_side_by_side(comparison, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import train_at_once

    (tmp_path / "comparison.yaml").write_text(yaml.safe_dump(comparison, sort_keys=False))
    monkeypatch.setattr(sys, "argv", ["train_at_once.py", str(tmp_path / "comparison.yaml")])
    train_at_once.main()


@pytest.mark.slow
def test_losses_are_those_of_cyclip_train(comparison, tmp_path, monkeypatch):
    side_by_side = {**comparison, "output_dir": str(tmp_path / "side_by_side")}
    train_side_by_side(side_by_side, tmp_path, monkeypatch)

    alone = plan_runs(ComparisonArguments(**comparison, output_dir=str(tmp_path / "alone")))
    for run, other in zip(alone, plan_runs(ComparisonArguments(**side_by_side)), strict=True):
        train.main(list(run.argv))
        assert other.cost() is not None
        assert len(logs(run)) == len(logs(other)) == 6
        for expected, log in zip(logs(run), logs(other), strict=True):
            for name in LOGGED:
                assert math.isclose(log[name], expected[name], rel_tol=1e-4), (run.arm, name, log, expected)
        weights, others = (load_file(one.folder / "model.safetensors") for one in (run, other))
        for name, weight in weights.items():
            # The gradient of a key's bias is zero but for rounding, and Adam takes steps of one size.
            if not name.endswith("k_proj.bias"):
                torch.testing.assert_close(others[name], weight, rtol=0, atol=LAST_RATE / 10)
        record, of_other = (json.loads((one.folder / "run.json").read_text()) for one in (run, other))
        assert record == of_other


@pytest.mark.parametrize("option", [{"max_grad_norm": 1.0}, {"bf16": True}, {"vision_learning_rate": 1e-4}])
def test_what_it_does_not_follow_is_refused(comparison, tmp_path, monkeypatch, option):
    (name,) = option
    with pytest.raises(SystemExit, match=f"error: .* has {name} .*, which is not followed here"):
        train_side_by_side({**comparison, "overrides": option, "output_dir": str(tmp_path)}, tmp_path, monkeypatch)
