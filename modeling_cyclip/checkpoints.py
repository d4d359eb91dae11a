"""When a checkpoint is complete, and which one to go on from."""

import re
import shutil
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Written last, so that a checkpoint without it was cut off while being written.
COMPLETE_MARKER = "complete"


def mark_complete(checkpoint: str | Path) -> None:
    (Path(checkpoint) / COMPLETE_MARKER).touch()


def mark_incomplete(checkpoint: str | Path) -> None:
    """To be called before a checkpoint is written (over an older one of the same step)."""
    (Path(checkpoint) / COMPLETE_MARKER).unlink(missing_ok=True)


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
        if _is_complete(path):
            return str(path)
        logger.warning(f"{path} was cut off while being written and is passed over.")
    return None


def remove_incomplete(output_dir: str | Path) -> None:
    """Deletes the checkpoints that were cut off: counted among the newest, they would push out complete ones."""
    for path in _newest_first(output_dir):
        if not _is_complete(path):
            shutil.rmtree(path)


def _newest_first(output_dir: str | Path) -> list[Path]:
    found = []
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name):
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found, reverse=True)]


def _is_complete(checkpoint: Path) -> bool:
    return (checkpoint / COMPLETE_MARKER).is_file()
