"""How many checkpoints outlive a power cut, with and without flushing: `python -m tests.faults.power_cut`.

It needs root, for a disk in a file. What the file holds at some moment is what a disk would hold after a cut.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from transformers import TrainerCallback

from modeling_cyclip.checkpoints import last_complete_checkpoint
from modeling_cyclip.commands.train import build_trainer, parse_arguments
from tests.invariant.trajectory import COMMON, write_pairs


CUTS = 8


def can_mount() -> bool:
    """Whether this machine lets us mount a disk in a file."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        try:
            with mounted(make_disk(Path(folder, "disk")), Path(folder, "mount")):
                return True
        except subprocess.CalledProcessError:
            return False


def make_disk(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(64 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", str(path)], check=True, capture_output=True)
    return path


@contextmanager
def mounted(disk: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", str(disk), str(folder)], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def contents(checkpoint: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in checkpoint.iterdir()}


class Cuts(TrainerCallback):
    """Looks, after each checkpoint, at what a disk would hold if the power went now."""

    def __init__(self, folder: Path, disk: Path):
        self.folder, self.disk, self.survived = folder, disk, 0
        self.fsync = os.fsync

    def on_save(self, args, state, control, **kwargs):
        # The kernel writes names and sizes every five seconds or when any program flushes, contents later.
        with Path(args.output_dir).with_name("another program's file").open("a") as file:
            file.write("a line\n")
            file.flush()
            self.fsync(file.fileno())
        shutil.copyfile(self.disk, self.folder / "after")
        saved = Path(args.output_dir, f"checkpoint-{state.global_step}")
        with mounted(self.folder / "after", self.folder / "disk after") as after:
            found = last_complete_checkpoint(after / "out")
            self.survived += found is not None and contents(Path(found)) == contents(saved)


def survivors(folder: Path, flush: bool) -> int:
    """Trains for as many steps as there are cuts, with one checkpoint at a time, and counts those that are whole."""
    disk = make_disk(folder / "disk")
    cuts = Cuts(folder, disk)
    with mounted(disk, folder / "mount") as mount:
        arguments = [*COMMON, "--eval_strategy", "no", "--train_file", str(write_pairs(folder))]
        arguments += ["--output_dir", str(mount / "out"), "--max_steps", str(CUTS), "--save_steps", "1"]
        arguments += ["--per_device_train_batch_size", "8"]
        trainer = build_trainer(
            *parse_arguments([*arguments, "--save_total_limit", "1", "--report_to", "none"]), resume_from=None
        )
        trainer.add_callback(cuts)
        with patch("os.fsync", os.fsync if flush else lambda descriptor: None):
            trainer.train()
    return cuts.survived


def main() -> None:
    for flush in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            whole = survivors(Path(folder), flush)
        print(
            f"| {'flushed' if flush else 'not flushed'} | {whole} of {CUTS} checkpoints are whole after a power cut |"
        )


if __name__ == "__main__":
    main()
