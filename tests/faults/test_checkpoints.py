"""Checkpoints on a disk that loses power, that damages files, or whose clock is set back."""

import errno
import os
import time
from pathlib import Path

import pytest
from transformers import TrainerCallback

from modeling_cyclip import CyCLIPTrainer, CyCLIPTrainingArguments, checkpoints
from modeling_cyclip.checkpoints import (
    check_checkpoint,
    last_complete_checkpoint,
    mark_complete,
    mark_incomplete,
    rotate_checkpoints,
)
from tests.distributed import run_distributed
from tests.faults import power_cut


@pytest.fixture
def warnings(monkeypatch):
    messages = []
    monkeypatch.setattr(checkpoints.logger, "warning", messages.append)
    return messages


def write_checkpoint(output_dir, step, **files):
    checkpoint = output_dir / f"checkpoint-{step}"
    mark_incomplete(checkpoint)
    for name, content in (files or {"model": b"weights", "optimizer": b"moments"}).items():
        (checkpoint / name).write_bytes(content)
    mark_complete(checkpoint)
    return checkpoint


def steps(output_dir):
    return {int(path.name.removeprefix("checkpoint-")) for path in output_dir.glob("checkpoint-*")}


# Power cuts


def test_all_is_on_the_disk_before_the_marker_and_the_marker_before_an_older_checkpoint_goes(
    make_trainer, tmp_path, monkeypatch
):
    first, second = tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"
    flushed, fsync = [], os.fsync

    def recorded_fsync(descriptor):
        fsync(descriptor)
        found = os.fstat(descriptor)
        (path,) = (path for path in (tmp_path, *tmp_path.rglob("*")) if os.path.samestat(path.stat(), found))
        flushed.append((path, found.st_size, (second / "complete").exists(), first.exists()))

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    make_trainer(save_total_limit=1).train()

    assert steps(tmp_path) == {2}
    before = {path: size for path, size, is_complete, _ in flushed if not is_complete}
    files = {path: path.stat().st_size for path in second.iterdir() if path.name != "complete"}
    assert {"model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"} < {p.name for p in files}
    assert files.items() <= before.items() and {second, tmp_path} <= before.keys()
    assert before[second / "incomplete"] == (second / "complete").stat().st_size
    assert [(path, older) for path, _, is_complete, older in flushed if is_complete] == [(second, True)]


def save_on_another_machine(rank, world_size, model, processor, pairs, output_dir):
    # Each process is the first of its machine.
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0")  # the process group is there already
    flushed, fsync = set(), os.fsync

    def recorded_fsync(descriptor):
        fsync(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    os.fsync = recorded_fsync
    arguments = CyCLIPTrainingArguments(
        str(output_dir), max_steps=1, per_device_train_batch_size=4, use_cpu=True, ddp_backend="gloo",
        report_to="none", disable_tqdm=True,
    )  # fmt: skip
    CyCLIPTrainer(model, arguments, train_dataset=pairs, processing_class=processor).train()
    return {path.name for path in output_dir.rglob("*") if path.stat().st_ino in flushed}


def test_every_machine_flushes_what_it_wrote(model, processor, pairs, tmp_path):
    flushed = run_distributed(save_on_another_machine, 2, tmp_path, model, processor, pairs, tmp_path / "out")
    assert all({"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"} <= names for names in flushed)


def test_disks_that_flush_no_folder_keep_checkpoints(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EINVAL if Path(f"/dev/fd/{descriptor}").is_dir() else errno.EIO, "no flush")

    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: fail(fd) if Path(f"/dev/fd/{fd}").is_dir() else fsync(fd))
    assert last_complete_checkpoint(tmp_path) is None
    checkpoint = write_checkpoint(tmp_path, 1)
    assert last_complete_checkpoint(tmp_path) == str(checkpoint)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no flush"):
        write_checkpoint(tmp_path, 2)
    assert not (tmp_path / "checkpoint-2" / "complete").exists()


@pytest.mark.skipif(not power_cut.can_mount(), reason="needs root and ext4 in a file")
@pytest.mark.parametrize("flush, survivors", [(False, 0), (True, power_cut.CUTS)])
def test_checkpoints_outlive_a_power_cut(tmp_path, flush, survivors):
    assert power_cut.survivors(tmp_path, flush) == survivors


# Damage


def test_a_checkpoint_with_any_file_cut_in_half_is_passed_over(make_trainer, tmp_path, warnings):
    make_trainer().train()
    first, second = (str(tmp_path / f"checkpoint-{step}") for step in (1, 2))
    assert last_complete_checkpoint(tmp_path) == second
    check_checkpoint(second)
    files = sorted(Path(second).iterdir())
    assert len(files) > 8
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert last_complete_checkpoint(tmp_path) == first, path
        assert f"{second} is damaged and is passed over: " in warnings[-1] and path.name in warnings[-1]
        with pytest.raises(
            ValueError, match=rf"checkpoint-2 is damaged: .*{path.name}.* Resume from another"
        ) as error:
            check_checkpoint(second)
        assert "\n" not in str(error.value)
        path.write_bytes(content)
    assert len(warnings) == len(files) and last_complete_checkpoint(tmp_path) == second


def test_bits_that_flip_and_files_that_vanish_are_damage(tmp_path, warnings):
    checkpoint = write_checkpoint(tmp_path, 1)
    (checkpoint / "model").write_bytes(b"Weights")
    assert last_complete_checkpoint(tmp_path) is None and warnings[-1].endswith(": the content of model has changed.")
    (checkpoint / "model").write_bytes(b"weights")
    (checkpoint / "optimizer").unlink()
    assert last_complete_checkpoint(tmp_path) is None and warnings[-1].endswith(": optimizer is missing.")


def test_a_card_that_is_edited_and_new_files_are_no_damage(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 1, **{"model": b"weights", "README.md": b"a card"})
    (checkpoint / "README.md").write_bytes(b"another card")
    (checkpoint / "results.json").write_bytes(b"{}")
    check_checkpoint(checkpoint)
    assert last_complete_checkpoint(tmp_path) == str(checkpoint)


def test_checkpoints_of_earlier_versions_go_on(tmp_path, warnings):
    checkpoint = write_checkpoint(tmp_path, 1)
    (checkpoint / "complete").write_bytes(b"")
    check_checkpoint(checkpoint)
    assert last_complete_checkpoint(tmp_path) == str(checkpoint)
    # What a power cut left of them.
    (checkpoint / "optimizer").write_bytes(b"")
    assert last_complete_checkpoint(tmp_path) is None and warnings[-1].endswith(": optimizer is empty.")


def test_a_checkpoint_that_is_named_may_be_absent_cut_off_or_of_another_trainer(tmp_path):
    with pytest.raises(ValueError, match=r"There is no checkpoint .*checkpoint-1 to go on from"):
        check_checkpoint(tmp_path / "checkpoint-1")
    mark_incomplete(tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match="checkpoint-2 was cut off while being written"):
        check_checkpoint(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-3").mkdir()
    check_checkpoint(tmp_path / "checkpoint-3")


# Rotation


class ClockRunsBackwards(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        os.utime(
            Path(args.output_dir, f"checkpoint-{state.global_step}"), (time.time() - 100 * state.global_step,) * 2
        )


def test_a_clock_set_back_deletes_no_new_checkpoint(make_trainer, tmp_path):
    seen = []
    trainer = make_trainer(max_steps=5, save_total_limit=2)
    trainer.add_callback(ClockRunsBackwards())
    save = trainer._save_checkpoint
    trainer._save_checkpoint = lambda *args: save(*args) or seen.append(steps(tmp_path))
    trainer.train()
    assert seen == [{1}, {1, 2}, {2, 3}, {3, 4}, {4, 5}]


def test_the_order_of_writing_goes_on_in_the_next_run(make_trainer, tmp_path):
    make_trainer(max_steps=3).train()
    for step in (1, 2, 3):
        os.utime(tmp_path / f"checkpoint-{step}", (time.time() + 10_000 - 100 * step,) * 2)
    make_trainer(max_steps=4, save_total_limit=2).train(resume_from_checkpoint=True)
    assert steps(tmp_path) == {3, 4}


def test_the_newest_and_the_best_checkpoint_stay(tmp_path):
    for step in (1, 2, 3, 1000, 4):
        newest = write_checkpoint(tmp_path, step)
    rotate_checkpoints(tmp_path, None, newest, None)
    rotate_checkpoints(tmp_path, 0, newest, None)
    rotate_checkpoints(tmp_path, 5, newest, None)
    assert steps(tmp_path) == {1, 2, 3, 4, 1000}
    rotate_checkpoints(tmp_path, 3, newest, str(tmp_path / "checkpoint-1"))
    assert steps(tmp_path) == {1, 4, 1000}
    rotate_checkpoints(tmp_path, 1, newest, str(tmp_path / "checkpoint-1"))
    assert steps(tmp_path) == {1, 4}
