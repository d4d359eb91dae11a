"""The script as its user runs it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import pipeline

from modeling_cyclip import CyCLIPModel
from tests.conftest import COLOURS, coloured_image


SCRIPT = Path(__file__).parents[2] / "training" / "run_cyclip.py"


@pytest.fixture
def train_file(tmp_path):
    lines = ["image,caption"]
    for level in range(8):
        for colour in COLOURS:
            coloured_image(colour, level).save(tmp_path / f"{colour}{level}.png")
            lines.append(f"{colour}{level}.png,a {colour} square number {level}")
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def run(*arguments, launcher=(sys.executable,)):
    return subprocess.run([*launcher, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True)


SMALL = ["--model_size", "nano", "--image_size", 16, "--patch_size", 8, "--vocab_size", 560, "--use_cpu",
         "--per_device_train_batch_size", 8, "--disable_tqdm", "true"]  # fmt: skip


def test_trains_saves_and_says_how_to_use_the_model(train_file, tmp_path):
    out = tmp_path / "out"
    result = run(
        *SMALL, "--train_file", train_file, "--validation_file", train_file, "--max_steps", 6, "--logging_steps", 2,
        "--report_to", "tensorboard", "--output_dir", out,
        launcher=(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert f'pipeline("zero-shot-image-classification", model="{out}")' in result.stdout
    model = CyCLIPModel.from_pretrained(out)
    assert model.config.crossmodal_cyclic_weight == 0.25
    metrics = json.loads((out / "eval_results.json").read_text())
    assert {"eval_loss", "eval_contrastive_loss", "eval_inmodal_cyclic_loss", "eval_crossmodal_cyclic_loss"} <= set(
        metrics
    )
    assert list(out.rglob("events.out.tfevents.*"))
    classify = pipeline("zero-shot-image-classification", model=str(out))
    answers = classify(coloured_image("red"), candidate_labels=["a red square", "a blue square"])
    assert {answer["label"] for answer in answers} == {"a red square", "a blue square"}


def test_goes_on_from_its_own_checkpoint(train_file, tmp_path):
    assert run(*SMALL, "--train_file", train_file, "--max_steps", 1, "--output_dir", tmp_path / "a").returncode == 0
    result = run(
        "--model_name_or_path", tmp_path / "a", "--train_file", train_file, "--max_steps", 1, "--use_cpu",
        "--per_device_train_batch_size", 8, "--inmodal_cyclic_weight", 0, "--output_dir", tmp_path / "b",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert CyCLIPModel.from_pretrained(tmp_path / "b").config.inmodal_cyclic_weight == 0


@pytest.mark.slow
def test_augmented_views_are_the_same_whether_or_not_the_run_is_resumed(train_file, tmp_path):
    arguments = [*SMALL, "--train_file", train_file, "--inmodal_contrastive", "--max_steps", 6, "--logging_steps", 1,
                 "--save_steps", 5, "--dataloader_num_workers", 1, "--output_dir", tmp_path / "out"]  # fmt: skip
    histories = []
    for resume in ([], ["--resume_from_checkpoint"]):
        result = run(*arguments, *resume)
        assert result.returncode == 0, result.stderr[-3000:]
        log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"][-2]
        histories.append([log["step"], log["loss"], log["inmodal_contrastive_loss"]])
        shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    assert histories[0] == histories[1] and histories[0][0] == 6


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--inmodal_contrastive", "--synonyms", "nowhere.txt"], "error: The synonyms nowhere.txt cannot be read"),
        (["--caption_column", "text"], "error: There is no column 'text'"),
        (["--vocab_size", "100"], "error: A byte-level vocabulary needs"),
        (["--per_device_train_batch_size", "64"], "fewer than one batch of 64"),
    ],
)
def test_bad_input_ends_with_one_line_before_training(train_file, tmp_path, arguments, message):
    result = run(*SMALL, "--train_file", train_file, "--output_dir", tmp_path / "out", *arguments)
    assert result.returncode != 0
    assert message in result.stderr and "Traceback" not in result.stderr
    assert "Running training" not in result.stderr
