"""Rows of a captioned dataset as samples: image decoded, one caption drawn, broken images replaced and reported."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from PIL import Image
from torch.utils.data import Dataset
from transformers.utils import logging

from ..distributed import rank, training_process_group
from .images import BrokenImageError, load_image
from .sampler import is_table, keyed_choice, keyed_seed


logger = logging.get_logger(__name__)

# With a share p of broken images, a sample finds no replacement with probability p ** 100. So this happens only in a set
# that is broken throughout.
MAX_REPLACEMENTS = 100
# Keeps the draws of an augmentation apart from those for a replacement.
AUGMENTATION = 1

Augment = Callable[[Image.Image, str, random.Random], tuple[Image.Image, str]]


class CaptionedSamples(Dataset):
    r"""
    Reads a captioned dataset batch by batch, by keys of [`~modeling_cyclip.data.sampler.EpochSampler`] or plain indices.

    One of several captions is drawn each epoch; a plain index takes the first. Another sample of the dataset that is not
    in the batch replaces an image that cannot be read, so that batches keep their size. Both choices, and what an
    augmentation draws, are functions of (seed, epoch, index).

    Args:
        dataset (`datasets.Dataset` or `torch.utils.data.Dataset`):
            Rows with `image` and `caption` (a string, or a list of strings).
        seed (`int`):
            Seed of the choices.
        min_image_size (`int`, *optional*):
            The smallest size at which a JPEG may be decoded, see [`~modeling_cyclip.data.images.load_image`].
        augment (`Callable`, *optional*):
            Makes a second view of an image and its caption, drawing from the `random.Random` that is its third argument.
    """

    def __init__(self, dataset: Dataset, seed: int, min_image_size: int | None = None, augment: Augment | None = None):
        self.dataset = _with_files(dataset)
        self.seed = seed
        self.min_image_size = min_image_size
        self.augment = augment

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[tuple[int, int] | int]) -> list[dict[str, Any]]:
        r"""
        Returns:
            `list[dict]`: for each key `image` (`PIL.Image.Image`), `caption` (`str`), `index` (`int`, the row it came
            from) and `broken_images` (`dict`, reasons by row for the images that it replaces); with an augmentation also
            `augmented_image` and `augmented_caption`.

        Raises:
            `ValueError`: hardly an image of the dataset can be read.
        """
        keys = [key if isinstance(key, tuple) else (None, key) for key in keys]
        taken = {index for _, index in keys}
        return [self._sample(epoch, index, taken) for epoch, index in keys]

    def _sample(self, epoch: int | None, index: int, taken: set[int]) -> dict[str, Any]:
        key = self.seed, -1 if epoch is None else epoch
        choices = random.Random(keyed_seed(*key, index))
        broken = {}
        for _ in range(MAX_REPLACEMENTS):
            row = self.dataset[index]
            try:
                image = load_image(row["image"], self.min_image_size)
            except BrokenImageError as error:
                broken[index] = str(error)
            else:
                caption = row["caption"]
                if not isinstance(caption, str):
                    drawn = 0 if epoch is None else keyed_choice(self.seed, epoch, [index], [len(caption)])[0]
                    caption = caption[drawn]
                sample = {"image": image, "caption": caption, "index": index, "broken_images": broken}
                if self.augment is not None:
                    draws = random.Random(keyed_seed(*key, index, AUGMENTATION))
                    sample["augmented_image"], sample["augmented_caption"] = self.augment(image, caption, draws)
                return sample
            # A repeat is a false negative in training; an evaluation counts it once.
            index = choices.randrange(len(self)) if epoch is None else self._untaken(choices, taken)
            taken.add(index)
        raise ValueError(
            f"{len(broken)} images in a row could not be read, the last one: {broken.popitem()[1]}. Check the image column "
            "and the paths."
        )

    def _untaken(self, choices: random.Random, taken: set[int]) -> int:
        if len(taken) == len(self):
            raise ValueError(
                f"No readable image is left to fill a batch: nearly all of the {len(self)} images of the set are in it "
                "already, or broken."
            )
        while (index := choices.randrange(len(self))) in taken:
            pass
        return index


def check_columns(dataset: Dataset) -> None:
    r"""
    Raises:
        `ValueError`: a table without a column `image` or `caption`, or with captions that are no text.
    """
    if not is_table(dataset) or dataset.format["type"] == "custom":
        return
    from datasets import LargeList, List, Value

    for column in ("image", "caption"):
        if column not in dataset.column_names:
            raise ValueError(
                f"The data has no column `{column}`, but {', '.join(dataset.column_names)}: rename the one that is meant, "
                f'`dataset.rename_column("...", "{column}")`.'
            )
    captions = dataset.features["caption"]
    kind = captions.feature if isinstance(captions, List | LargeList) else captions
    if kind not in (Value("string"), Value("large_string")):
        raise ValueError(f"The column `caption` must hold strings or lists of strings, not {captions}.")


def _with_files(dataset: Dataset) -> Dataset:
    """Leaves images of a table undecoded, so that only [`load_image`] meets a broken one. A set's own transform stays."""
    if not is_table(dataset) or dataset.format["type"] == "custom":
        return dataset
    import datasets

    is_decoded = isinstance(dataset.features["image"], datasets.Image)
    return dataset.cast_column("image", datasets.Image(decode=False)) if is_decoded else dataset


@dataclass
class SampleCollator:
    """
    Hands `image` and `caption` to a collator, and passes on what the Trainer accounts for. Augmented views go through the
    collator in one batch with the others, so that captions are padded alike. They come out under `augmented_` names.
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [{"image": sample["image"], "caption": sample["caption"]} for sample in samples]
        if "augmented_image" in samples[0]:
            rows += [
                {"image": sample["augmented_image"], "caption": sample["augmented_caption"]} for sample in samples
            ]
            batch = {}
            for name, both in self.collator(rows).items():
                batch[name], batch[f"augmented_{name}"] = both.chunk(2)
        else:
            batch = dict(self.collator(rows))
        batch["sample_index"] = torch.tensor([sample["index"] for sample in samples])
        batch["broken_images"] = {key: reason for sample in samples for key, reason in sample["broken_images"].items()}
        return batch


class BrokenImages(dict[int, str]):
    r"""
    Reasons by row for the images of a dataset that were left out. The log names each of them once, whichever processes
    met it.

    Args:
        dataset (`str`):
            The dataset's name in the log.
    """

    def __init__(self, dataset: str):
        super().__init__()
        self.dataset = dataset
        self._met: dict[int, str] = {}

    def meet(self, reasons: dict[int, str]) -> None:
        """Keeps what this process has met until the next report."""
        self._met.update(reasons)

    def report(self) -> None:
        """Names the new ones in the log. All processes call it."""
        is_first_process = rank(training_process_group()) == 0
        for row, reason in (item for met in gather_object([self._met]) for item in met.items()):
            if row not in self and is_first_process:
                logger.warning(f"Row {row} of the {self.dataset} set is left out, its image cannot be read: {reason}")
            self[row] = reason
        self._met = {}
