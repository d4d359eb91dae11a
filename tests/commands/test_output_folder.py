"""A folder that a training must not write into is refused before anything is read."""

import logging
import subprocess
import sys

import pytest
from filelock import FileLock

from modeling_cyclip import CyCLIPTrainingArguments, resume
from modeling_cyclip.build_model import ModelArguments
from modeling_cyclip.commands import train_checks
from modeling_cyclip.commands.train import main
from modeling_cyclip.commands.train_checks import LOCK, check_output_folder, lock_output_folder, remove_checkpoints
from modeling_cyclip.resume import find_checkpoint
from tests.invariant.trajectory import SCRIPT, command, write_pairs


def arguments(folder, **options):
    return CyCLIPTrainingArguments(str(folder), use_cpu=True, **options)


def check(folder, lora_rank=None, **options):
    model_args = ModelArguments(model_size="nano")
    model_args.lora_rank = lora_rank
    check_output_folder(model_args, arguments(folder, **options))


def test_a_folder_is_made(tmp_path):
    lock_output_folder(arguments(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be made"):
        lock_output_folder(arguments(tmp_path / "file" / "out"))


def test_a_folder_that_another_training_writes_to_is_refused_until_that_dies(tmp_path, monkeypatch):
    monkeypatch.setattr(train_checks, "LOCK_SECONDS", 0.1)
    script = f"""
import filelock, time
lock = filelock.FileLock({str(tmp_path / LOCK)!r})
lock.acquire()
print("locked", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ValueError, match="Another training writes to"):
            lock_output_folder(arguments(tmp_path))
        other.kill()
    assert lock_output_folder(arguments(tmp_path)).is_locked


def test_a_disk_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def fail(self, timeout):
        raise NotImplementedError("no flock here")

    monkeypatch.setattr(FileLock, "acquire", fail)
    lock_output_folder(arguments(tmp_path))
    assert "cannot be locked (no flock here)" in caplog.text


def test_checkpoints_of_an_earlier_training_are_gone_on_from_or_left_alone_or_replaced(tmp_path):
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(ValueError, match="--resume_from_checkpoint, choose another"):
        check(tmp_path)
    check(tmp_path, resume_from_checkpoint=True)
    check(tmp_path, overwrite_output_dir=True)
    with pytest.raises(ValueError, match="leave one of them out"):
        check(tmp_path, overwrite_output_dir=True, resume_from_checkpoint=True)
    remove_checkpoints(arguments(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name, lora_rank", [("config.json", None), ("adapter_config.json", 4)])
def test_a_finished_model_is_replaced_only_when_asked(tmp_path, name, lora_rank):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match="has a finished model"):
        check(tmp_path, lora_rank)
    check(tmp_path, lora_rank, overwrite_output_dir=True)
    check(tmp_path, lora_rank, resume_from_checkpoint=True)


@pytest.mark.parametrize("name, lora_rank", [("config.json", 4), ("adapter_config.json", None)])
def test_models_and_adapters_do_not_meet_in_a_folder(tmp_path, name, lora_rank):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"has the {name} of another run"):
        check(tmp_path, lora_rank)


@pytest.mark.parametrize("save_steps, whole", [("1", r"whole is .*checkpoint-2\."), ("5", "No checkpoint is whole")])
def test_a_disk_full_at_the_end_names_the_checkpoint_that_is_whole(tmp_path, save_steps, whole):
    out = tmp_path / "out"
    out.mkdir()
    # Writing there fails as on a full disk.
    (out / "trainer_state.json").symlink_to("/dev/full")
    options = ["--max_steps", "2", "--save_steps", save_steps, "--eval_strategy", "no"]
    if save_steps == "5":
        options += ["--save_strategy", "no"]
    whole_command = command(write_pairs(tmp_path), out, 1, ["--per_device_train_batch_size", "64", *options])
    with pytest.raises(SystemExit, match=f"error: The finished model could not be written to .*{whole}"):
        main(whole_command[whole_command.index(str(SCRIPT)) + 1 :])


@pytest.mark.parametrize("meant", ["named", True])
def test_that_a_checkpoint_is_read_is_said_before_it_is(tmp_path, monkeypatch, caplog, meant):
    checkpoint = tmp_path / "checkpoint-7"
    checkpoint.mkdir()
    (checkpoint / "optimizer.pt").write_bytes(b"state")
    said = []

    def read(*_):
        said.extend(record.getMessage() for record in caplog.records)
        return str(checkpoint)

    monkeypatch.setattr(resume, "check_checkpoint", read)
    monkeypatch.setattr(resume, "last_complete_checkpoint", read)
    with caplog.at_level(logging.INFO, "modeling_cyclip"):
        assert find_checkpoint(str(checkpoint) if meant == "named" else True, str(tmp_path)) == str(checkpoint)
    assert len(said) == 1 and "from end to end" in said[0]
    assert str(checkpoint if meant == "named" else tmp_path) in said[0]
