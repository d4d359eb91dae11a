"""Progress bars that say what they are about."""

import sys
from collections.abc import Iterable

from tqdm.auto import tqdm


def progress_bar(iterable: Iterable, description: str | None, **options) -> tqdm:
    """
    A bar that is there as soon as the work begins, or after a `delay` where steps are short. A file keeps everything that is
    written to it, so that there a bar is written every five seconds only.
    """
    return tqdm(iterable, description, mininterval=0.1 if sys.stderr.isatty() else 5, **options)
