"""Marks complete checkpoints, checks and rotates them, and finds the one to resume from."""

import errno
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging


logger = logging.get_logger(__name__)

# The first marker is written before a checkpoint. It becomes the second, which lists the files, when all of the checkpoint
# is on the disk. A checkpoint that was cut off has the first.
INCOMPLETE_MARKER, COMPLETE_MARKER = "incomplete", "complete"

# Not listed: the markers themselves, and the card, which people edit.
UNLISTED = {INCOMPLETE_MARKER, COMPLETE_MARKER, "README.md"}
# What disks answer that flush no folder: Windows, and some on a network or in user space.
NO_FLUSH_OF_FOLDERS = {
    getattr(errno, name)
    for name in ("EACCES", "EINVAL", "EBADF", "EISDIR", "ENOTSUP", "ENOSYS")
    if hasattr(errno, name)
}


class CheckpointError(RuntimeError):
    """A checkpoint, or the finished model, could not be written."""


def mark_incomplete(checkpoint: str | Path) -> None:
    """Call this before a checkpoint is written (perhaps over an older one of the same step)."""
    checkpoint = Path(checkpoint)
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / INCOMPLETE_MARKER).touch()
    (checkpoint / COMPLETE_MARKER).unlink(missing_ok=True)
    _flush(checkpoint)


def flush(checkpoint: str | Path) -> None:
    """
    Waits until all that this machine wrote of a checkpoint outlives a power cut: the files, and their names in the folders.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        return  # this machine wrote nothing of it to its own disk
    paths = list(checkpoint.rglob("*"))
    for path in (*filter(Path.is_file, paths), *filter(Path.is_dir, paths), checkpoint, checkpoint.parent):
        _flush(path)


def mark_complete(checkpoint: str | Path) -> None:
    """
    Call this when all of a checkpoint is written, and on other machines flushed. The checkpoint and the marker are on the
    disk when it returns.
    """
    checkpoint = Path(checkpoint)
    flush(checkpoint)
    record = {
        # Clocks may be set back, so the order of writing is counted.
        "number": 1 + max(map(_number, _newest_first(checkpoint.parent)), default=0),
        "files": {name: [path.stat().st_size, _checksum(path)] for name, path in _listed_files(checkpoint).items()},
    }
    marker = checkpoint / INCOMPLETE_MARKER
    marker.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    _flush(marker)
    marker.replace(checkpoint / COMPLETE_MARKER)
    _flush(checkpoint)


def is_complete(checkpoint: str | Path) -> bool:
    """Whether a checkpoint was written to its end. It may have been damaged since."""
    return (Path(checkpoint) / COMPLETE_MARKER).is_file()


def check_checkpoint(checkpoint: str | Path) -> None:
    """
    Reads all of a checkpoint. Raises a `ValueError` if it does not exist, was cut off while being written, or has been
    damaged since. Of another Trainer's checkpoint nothing is known, and it passes.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        raise ValueError(f"There is no checkpoint {checkpoint} to go on from.")
    if not is_complete(checkpoint):
        if (checkpoint / INCOMPLETE_MARKER).is_file():
            raise ValueError(f"{checkpoint} was cut off while being written. Resume from another checkpoint.")
    elif damage := _damage(checkpoint):
        raise ValueError(f"{checkpoint} is damaged: {damage}. Resume from another checkpoint.")


def last_complete_checkpoint(output_dir: str | Path, leave_out: Collection[str] = ()) -> str | None:
    """
    The newest complete checkpoint in the output folder of a training, or `None`. Newer ones that were cut off or damaged
    are passed over with a warning (transformers' `get_last_checkpoint` looks at folder names only), and those to leave out
    without one.
    """
    # By the order of writing, as in rotation: a run may have gone on from an older checkpoint than its last. Those of which it
    # is not known come first, to be named.
    newest_first = sorted(_newest_first(output_dir), key=lambda path: _number(path, unknown=math.inf), reverse=True)
    for path in newest_first:
        if str(path) in leave_out:
            continue
        if not is_complete(path):
            logger.warning(f"{path} was cut off while being written and is passed over.")
        elif damage := _damage(path):
            logger.warning(f"{path} is damaged and is passed over: {damage}.")
        else:
            return str(path)
    return None


def remove_incomplete(output_dir: str | Path) -> None:
    """
    Deletes checkpoints that were cut off. They would count for `save_total_limit`, so that fewer complete ones were left.
    Checkpoints of other Trainers have no marker and stay.
    """
    for path in _newest_first(output_dir):
        if (path / INCOMPLETE_MARKER).is_file() and not is_complete(path):
            shutil.rmtree(path)


def rotate_checkpoints(output_dir: str | Path, save_total_limit: int | None, newest: str, best: str | None) -> None:
    """
    Deletes the checkpoints that were written first until `save_total_limit` are left, but never the newest and the best one
    of this training. Those of other Trainers go first. (transformers' own goes by a clock that may be set back.)
    """
    if save_total_limit is None or save_total_limit <= 0:
        return
    # Those without a number go by the clock, and by their steps where a disk keeps no times.
    found = sorted(_newest_first(output_dir), key=lambda path: (_number(path), path.stat().st_mtime, _step(path)))
    kept = {Path(path).name for path in (newest, best) if path is not None}
    for path in [path for path in found if path.name not in kept][: max(0, len(found) - save_total_limit)]:
        shutil.rmtree(path, ignore_errors=True)


def _newest_first(output_dir: str | Path) -> list[Path]:
    found = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    is_checkpoint = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+").fullmatch
    return sorted((path for path in found if is_checkpoint(path.name)), key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))


def _flush(path: Path) -> None:
    try:
        # Windows flushes only what is open for writing, and opens no folder. Some network disks flush no folder.
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in NO_FLUSH_OF_FOLDERS:
            raise


def _listed_files(checkpoint: Path) -> dict[str, Path]:
    """The files that a complete checkpoint lists, by name."""
    files = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if path.is_file()}
    return {name: files[name] for name in sorted(files.keys() - UNLISTED)}


def _checksum(path: Path) -> int:
    # The enemy is a bad disk, not a forger.
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _read_marker(checkpoint: Path) -> dict[str, Any]:
    """What the marker says. That of earlier versions is empty. Raises a `ValueError` if it is damaged."""
    content = (checkpoint / COMPLETE_MARKER).read_text(encoding="utf-8")
    return json.loads(content) if content else {}


def _number(checkpoint: Path, unknown: float = 0) -> float:
    """
    The place of a checkpoint in the order of writing, from 1 on, and `unknown` for what is not known to be complete. Those
    that earlier versions wrote have 0.
    """
    try:
        return _read_marker(checkpoint).get("number", 0)
    except (OSError, ValueError):
        return unknown


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a complete checkpoint. Sizes come first, since they cost nothing."""
    files = _listed_files(checkpoint)
    try:
        listed = _read_marker(checkpoint).get("files")
    except ValueError:
        return f"its list of files, {COMPLETE_MARKER}, cannot be read"
    if listed is None:
        # A power cut leaves files without content.
        return next((f"{name} is empty" for name, path in files.items() if path.stat().st_size == 0), None)
    for name, (size, _) in listed.items():
        if name not in files:
            return f"{name} is missing"
        if (actual := files[name].stat().st_size) != size:
            return f"{name} has {actual} bytes instead of {size}"
    changed = (name for name, (_, checksum) in listed.items() if _checksum(files[name]) != checksum)
    return next((f"the content of {name} has changed" for name in changed), None)
