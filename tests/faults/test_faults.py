"""Trainings that are cut off where it hurts, and the same command again; images that cannot be read."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from modeling_cyclip import CyCLIPTrainer
from modeling_cyclip.checkpoints import last_complete_checkpoint, mark_incomplete
from tests.invariant.trajectory import SCRIPT, command, environment, read_trajectory, write_pairs


FAULTY_RUN = Path(__file__).with_name("faulty_run.py")
ARGUMENTS = ["--per_device_train_batch_size", "64", "--dataloader_num_workers", "1", "--save_total_limit", "1",
             "--resume_from_checkpoint"]  # fmt: skip


def run(command, fault=None):
    """The exit status, the output and the log of a run that ends, by itself or by a fault."""
    if fault is not None:
        command = [sys.executable, str(FAULTY_RUN), fault, *command[command.index(str(SCRIPT)) + 1 :]]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    return ended.returncode, ended.stdout, ended.stderr


def test_the_same_command_after_each_fault_ends_with_the_weights_of_the_uninterrupted_run(tmp_path):
    train_file = write_pairs(tmp_path)
    status, _, log = run(command(train_file, tmp_path / "whole", 1, ARGUMENTS))
    assert status == 0, log
    out = tmp_path / "struck"
    again = command(train_file, out, 1, ARGUMENTS)
    second, third = out / "checkpoint-2", out / "checkpoint-4"
    passed_over = f"{third} was cut off while being written and is passed over."

    status, _, log = run(again, "killed in the 4th forward pass")
    assert status == -9 and (second / "complete").exists() and not third.exists(), log

    status, _, log = run(again, "killed in the model's file")
    assert status == -9 and (third / "model.safetensors").exists(), log
    assert passed_over not in log

    status, _, log = run(again, "killed before the optimizer's file")
    assert status == -9 and load_file(third / "model.safetensors") and not (third / "optimizer.pt").exists(), log
    assert log.count(passed_over) == 1

    status, _, log = run(again, "data worker killed")
    assert status == 1 and "DataLoader worker" in log and "Killed" in log, log
    assert log.count(passed_over) == 1

    # Writing there fails as on a full disk.
    (third / "optimizer.pt").symlink_to("/dev/full")
    status, _, log = run(again)
    assert status == 1 and f"{third} could not be written to its end" in log.splitlines()[-1], log
    assert (second / "complete").exists() and not (third / "complete").exists()

    (third / "optimizer.pt").unlink()
    status, _, log = run(again)
    assert status == 0 and log.count(passed_over) == 1, log
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-6"]
    expected, actual = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", out))
    assert all(actual[name].equal(tensor) for name, tensor in expected.items())


def test_checkpoints_that_were_cut_off_push_out_no_complete_one(make_trainer, tmp_path):
    mark_incomplete(tmp_path / "checkpoint-9")
    make_trainer(save_total_limit=1).train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_older_checkpoints_of_another_training_go_first_and_those_of_another_trainer_count(make_trainer, tmp_path):
    for step, age in ((1000, 3600), (7, 60)):
        other = tmp_path / f"checkpoint-{step}"
        other.mkdir()
        os.utime(other, (time.time() - age,) * 2)
    make_trainer(save_total_limit=3).train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-7", "checkpoint-1", "checkpoint-2"}


def test_true_resumes_from_the_last_complete_checkpoint(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="has no complete checkpoint"):
        make_trainer().train(resume_from_checkpoint=True)
    make_trainer().train()
    mark_incomplete(tmp_path / "checkpoint-2")
    resumed = make_trainer(max_steps=3)
    read = []
    resumed.training_step = lambda *args: (
        read.append(resumed.state.global_step) or CyCLIPTrainer.training_step(resumed, *args)
    )
    resumed.train(resume_from_checkpoint=True)
    assert read == [1, 2]


def test_a_hub_that_fails_is_no_checkpoint_that_failed(make_trainer, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("the Hub is down")

    monkeypatch.setattr(CyCLIPTrainer, "init_hf_repo", lambda self, *args, **kwargs: None)
    monkeypatch.setattr(CyCLIPTrainer, "push_in_progress", None, raising=False)
    monkeypatch.setattr(CyCLIPTrainer, "hub_model_id", "someone/model", raising=False)
    monkeypatch.setattr("modeling_cyclip.hub.publish.publish_checkpoint", fail)
    with pytest.raises(ConnectionError, match="the Hub is down"):
        make_trainer(push_to_hub=True, hub_strategy="every_save").train()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


def damage(image, kind):
    if kind == "missing":
        image.unlink()
    else:
        content = image.read_bytes()
        image.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "no image": b"<html>"}[kind])


def test_rows_read_and_rows_named_as_broken_are_the_dataset(tmp_path):
    train_file = write_pairs(tmp_path)
    images = [tmp_path / name for name in re.findall(r"\w+\.png", train_file.read_text())]
    broken = {row: ("truncated", "empty", "no image", "missing")[row % 4] for row in range(160) if row * 48 % 160 < 48}
    assert len(images) == 160 and len(broken) == 48 and len(set(broken.values())) == 4
    for row, kind in broken.items():
        damage(images[row], kind)
    arguments = ["--per_device_train_batch_size", "16", "--max_steps", "-1", "--num_train_epochs", "1"]

    status, output, log = run(command(train_file, tmp_path / "out", 1, arguments), "none, rows read are printed")

    assert status == 0, log
    assert sum("loss" in log for log in read_trajectory(tmp_path / "out")) == 10
    named = re.findall(r"Row (\d+) of the training set is left out, its image cannot be read: (\S+)", log)
    assert sorted((int(row), name) for row, name in named) == [(row, f"{images[row]}:") for row in sorted(broken)]
    read = {int(row) for line in re.findall(r"^read (.*)$", output, re.MULTILINE) for row in line.split()}
    assert read == set(range(160)) - set(broken)
    assert f"'broken_images': '{len(broken)}'" in output.replace(f": {len(broken)}", f": '{len(broken)}'"), output
