"""When a checkpoint is complete, and which one to go on from."""

import re
import shutil
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging


logger = logging.get_logger(__name__)

# One is written first and the other last, so that a checkpoint that was cut off has the first alone.
INCOMPLETE_MARKER, COMPLETE_MARKER = "incomplete", "complete"


def mark_incomplete(checkpoint: str | Path) -> None:
    """To be called before a checkpoint is written (over an older one of the same step)."""
    checkpoint = Path(checkpoint)
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / INCOMPLETE_MARKER).touch()
    (checkpoint / COMPLETE_MARKER).unlink(missing_ok=True)


def mark_complete(checkpoint: str | Path) -> None:
    """To be called when all of it is written."""
    checkpoint = Path(checkpoint)
    (checkpoint / COMPLETE_MARKER).touch()
    (checkpoint / INCOMPLETE_MARKER).unlink(missing_ok=True)


def is_complete(checkpoint: str | Path) -> bool:
    return (Path(checkpoint) / COMPLETE_MARKER).is_file()


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    r"""
    The newest checkpoint that was written to its end. Newer ones that were not are passed over with a warning
    (transformers' `get_last_checkpoint` looks at folder names only).

    Args:
        output_dir (`str` or `Path`):
            The output folder of a training.

    Returns:
        `str`: its folder, or `None` where there is none.
    """
    for path in _newest_first(output_dir):
        if is_complete(path):
            return str(path)
        logger.warning(f"{path} was cut off while being written and is passed over.")
    return None


def remove_incomplete(output_dir: str | Path) -> None:
    """
    Deletes the checkpoints that were cut off: counted among the newest, they would push out complete ones. Those of other
    Trainers, which have no marker, stay.
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
