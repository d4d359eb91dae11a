"""The account of images that cannot be read."""

from accelerate.utils import gather_object
from transformers.utils import logging

from .distributed import rank, training_process_group


logger = logging.get_logger(__name__)


class BrokenImages(dict[int, str]):
    r"""
    Reasons by row for the images of a dataset that were left out. Each is named once in the log, whichever processes met
    it.

    Args:
        dataset (`str`):
            What the log calls the dataset.
    """

    def __init__(self, dataset: str):
        super().__init__()
        self.dataset = dataset
        self._met: dict[int, str] = {}

    def meet(self, reasons: dict[int, str]) -> None:
        """Keeps what this process has met until the next report."""
        self._met.update(reasons)

    def report(self) -> None:
        """Names the new ones. All processes call it."""
        is_first_process = rank(training_process_group()) == 0
        for met in gather_object([self._met]):
            for row, reason in met.items():
                if row not in self and is_first_process:
                    logger.warning(
                        f"Row {row} of the {self.dataset} set is left out, its image cannot be read: {reason}"
                    )
                self[row] = reason
        self._met = {}
