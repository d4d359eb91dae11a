"""Marks complete checkpoints, and finds the one to resume from."""

import re
import shutil
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging


logger = logging.get_logger(__name__)

# The first marker is written before a checkpoint and the second after it. A checkpoint that was cut off has the first.
INCOMPLETE_MARKER, COMPLETE_MARKER = "incomplete", "complete"


def mark_incomplete(checkpoint: str | Path) -> None:
    """Call this before a checkpoint is written (perhaps over an older one of the same step)."""
    checkpoint = Path(checkpoint)
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / INCOMPLETE_MARKER).touch()
    (checkpoint / COMPLETE_MARKER).unlink(missing_ok=True)


def mark_complete(checkpoint: str | Path) -> None:
    """Call this when all of a checkpoint is written."""
    checkpoint = Path(checkpoint)
    (checkpoint / COMPLETE_MARKER).touch()
    (checkpoint / INCOMPLETE_MARKER).unlink(missing_ok=True)


def is_complete(checkpoint: str | Path) -> bool:
    return (Path(checkpoint) / COMPLETE_MARKER).is_file()


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """
    The newest complete checkpoint in the output folder of a training, or `None`. Newer ones that were cut off are passed
    over with a warning (transformers' `get_last_checkpoint` looks at folder names only).
    """
    for path in _newest_first(output_dir):
        if is_complete(path):
            return str(path)
        logger.warning(f"{path} was cut off while being written and is passed over.")
    return None


def remove_incomplete(output_dir: str | Path) -> None:
    """
    Deletes checkpoints that were cut off. They would count as the newest ones, so that rotation would delete complete
    checkpoints instead. Checkpoints of other Trainers have no marker and stay.
    """
    for path in _newest_first(output_dir):
        if (path / INCOMPLETE_MARKER).is_file() and not is_complete(path):
            shutil.rmtree(path)


def _newest_first(output_dir: str | Path) -> list[Path]:
    found = []
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name):
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found, reverse=True)]
