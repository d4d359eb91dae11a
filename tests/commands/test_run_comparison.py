"""The comparison as its user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.conftest import COLOURS, coloured_image


SCRIPT = Path(__file__).parents[2] / "training" / "run_comparison.py"


def write_config(folder: Path, **changed) -> Path:
    """Pictures of plain colour to train on, and to test on by the name of the colour."""
    lines = ["image,caption"]
    for level in range(10):
        for colour in COLOURS:
            coloured_image(colour, level).save(folder / f"{colour}{level}.png")
            lines.append(f"{colour}{level}.png,{colour} number {level}")
            if level % 2:
                (folder / "test" / colour).mkdir(parents=True, exist_ok=True)
                coloured_image(colour, level + 1).save(folder / "test" / colour / f"{level}.png")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    recipe = {
        "model_size": "nano", "image_size": 16, "patch_size": 8, "vocab_size": 560, "use_cpu": True,
        "train_file": str(folder / "pairs.csv"), "per_device_train_batch_size": 8, "logging_steps": 1, "max_steps": 5,
        "disable_tqdm": True,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    config = {
        "recipe": str(folder / "recipe.yaml"),
        "output_dir": str(folder / "out"),
        "arms": {"CLIP": {"inmodal_cyclic_weight": 0.0, "crossmodal_cyclic_weight": 0.0}, "CyCLIP": {}},
        "seeds": [0, 1],
        "num_parallel": 2,
        "evaluations": {"colours": {"dataset": str(folder / "test"), "split": "train", "tasks": ["all"]}},
        **changed,
    }
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def run(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Four trainings in which nothing is learnt, so that all arms see every batch with the same weights."""
    folder = tmp_path_factory.mktemp("comparison")
    config = write_config(folder, overrides={"learning_rate": 0.0}, center=True)
    result = run("--config", config)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder / "out", result


def losses(run_folder: Path) -> list[float]:
    log = json.loads((run_folder / "trainer_state.json").read_text())["log_history"]
    return [entry["contrastive_loss"] for entry in log if "contrastive_loss" in entry]


def test_arms_share_initial_weights_and_order_of_the_data(compared):
    out, _ = compared
    for seed in (0, 1):
        clip, cyclip = (losses(out / "runs" / f"{arm}-seed{seed}") for arm in ("clip", "cyclip"))
        assert len(clip) == 5
        assert clip == cyclip
    assert losses(out / "runs" / "clip-seed0") != losses(out / "runs" / "clip-seed1")


def test_report_holds_every_seed_the_intervals_and_the_baseline_without_means(compared):
    out, result = compared
    results = json.loads((out / "results.json").read_text())
    top1 = results["results"]["colours"]["zero_shot"]["top1"]
    assert set(top1) == {"CLIP", "CyCLIP", "CLIP, means removed"}
    assert len(top1["CyCLIP"]["seeds"]) == 2
    # Weights that never moved are the same in both arms.
    assert top1["CyCLIP"]["difference"]["items_interval"] == [0.0, 0.0]
    assert top1["CyCLIP"]["difference"]["verdict"].startswith("CLIP did not train: the contrastive loss")
    assert top1["CLIP"]["items"] == 20
    assert {cost["gpu_memory"] for costs in results["cost"].values() for cost in costs} == {None}
    assert "| colours, zero_shot top1 | CyCLIP |" in result.stdout


def test_report_links_pictures_that_are_there(compared):
    out, _ = compared
    report = (out / "report.md").read_text()
    for name in ("bars", "training_curves", "similarities", "plane"):
        assert f"(plots/{name}.png)" in report
        assert (out / "plots" / f"{name}.png").stat().st_size > 5000
        assert (out / "plots" / f"{name}.svg").is_file()


@pytest.mark.slow
def test_killed_comparison_goes_on_to_the_same_models(tmp_path):
    arguments = {"overrides": {"save_steps": 2}, "arms": {"CyCLIP": {}}, "seeds": [0], "num_parallel": 1}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    # The tokenizer is trained on the same captions, so that only the interruption differs.
    whole, killed = (write_config(tmp_path / name, **arguments) for name in ("whole", "killed"))
    assert run("--config", whole).returncode == 0
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--config", str(killed)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    folder = tmp_path / "killed" / "out" / "runs" / "cyclip-seed0"
    deadline = time.monotonic() + 300
    while not (folder / "checkpoint-2").is_dir() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "model.safetensors").exists()
    result = run("--config", killed)
    assert result.returncode == 0, result.stderr[-3000:]
    weights = [
        load_file(tmp_path / name / "out" / "runs" / "cyclip-seed0" / "model.safetensors")
        for name in ("whole", "killed")
    ]
    assert_close(*weights, rtol=0, atol=0)


def test_data_that_cannot_be_measured_is_one_error_before_any_training(tmp_path):
    evaluations = {"colours": {"dataset": str(tmp_path / "test"), "split": "train", "tasks": ["retrieval"]}}
    result = run("--config", write_config(tmp_path, evaluations=evaluations))
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: evaluation colours: The task retrieval needs")
    assert not (tmp_path / "out").exists()
