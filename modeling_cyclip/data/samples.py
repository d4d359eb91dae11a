"""Rows of a captioned dataset as samples: image decoded, one caption drawn, broken images replaced and reported."""

import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers.utils import logging

from ..distributed import rank, training_process_group
from .augment import random_part
from .data_collator import from_array
from .images import BrokenImageError, load_image, load_pixels
from .sampler import EpochSampler, captions_of_row, is_table, keyed_choice, keyed_seed


logger = logging.get_logger(__name__)

# With a share p of broken images, a sample finds no replacement with probability p ** 100. So this happens only in a set
# that is broken throughout.
MAX_REPLACEMENTS = 100
# Keep the draws of a second view, and of a part of the image, apart from those for a replacement.
AUGMENTATION = 1
CROP = 2

Augment = Callable[[Image.Image, str, random.Random], tuple[Image.Image, str]]


class CaptionedSamples(Dataset):
    r"""
    Reads a captioned dataset batch by batch, by keys of [`~modeling_cyclip.data.sampler.EpochSampler`] or plain indices.

    One of several captions is drawn each epoch; a plain index takes the first. Another sample of the dataset replaces an
    image that cannot be read, so that batches keep their size. With the `sampler`, it is one that is not in the batch of
    all processes. Which one, which caption, and what an augmentation draws are functions of (seed, epoch, index), whatever
    the number of processes and workers that share a batch.

    Args:
        dataset (`datasets.Dataset` or `torch.utils.data.Dataset`):
            Rows with `image` (what [`~modeling_cyclip.data.images.load_image`] opens, or an array) and `caption` (a string, or
            a list of strings).
        seed (`int`):
            Seed of the choices.
        min_image_size (`int`, *optional*):
            The smallest size at which a JPEG may be decoded, see [`~modeling_cyclip.data.images.load_image`].
        augment (`Callable`, *optional*):
            Makes a second view of an image and its caption, drawing from the `random.Random` that is its third argument.
        sampler ([`~modeling_cyclip.data.sampler.EpochSampler`], *optional*):
            Where the keys come from. It says which samples may replace which. Without it, and for plain indices,
            replacements are drawn from the whole dataset.
        process_image (`Callable`, *optional*):
            What the collator does with a single image, such as `CyCLIPDataCollator.process_image`. Done as each image is
            opened, it keeps no more than one at its full size in memory. Without an augmentation it is given what
            [`~modeling_cyclip.data.images.load_pixels`] opens. With `random_resized_crop` it must take `stretch=True`.
        random_resized_crop (`tuple[float, float]`, *optional*):
            Takes a random part of each image instead of the whole: the least and the most of its area to keep, see
            [`~modeling_cyclip.data.augment.random_part`]. `augment` is given the whole image nevertheless.
    """

    def __init__(
        self,
        dataset: Dataset,
        seed: int,
        min_image_size: int | None = None,
        augment: Augment | None = None,
        sampler: EpochSampler | None = None,
        process_image: Callable[..., Tensor] | None = None,
        random_resized_crop: tuple[float, float] | None = None,
    ):
        self.dataset = _with_files(dataset)
        self.seed = seed
        if random_resized_crop is not None and min_image_size is not None:
            # The smallest part keeps the pixels that the whole of an image would have had.
            min_image_size = math.ceil(min_image_size / math.sqrt(random_resized_crop[0]))
        self.min_image_size = min_image_size
        self.augment = augment
        self.sampler = sampler
        self.process_image = process_image
        self.random_resized_crop = random_resized_crop
        self._readable: dict[int, bool] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Any]:
        r"""
        Returns:
            `dict`: `image` (`PIL.Image.Image`, or what `process_image` makes of it), `caption` (`str`), `index` (`int`, the
            row it came from) and `broken_images` (`dict`, reasons by row for the images that it replaces); with an
            augmentation also `augmented_image` and `augmented_caption`.

        Raises:
            `ValueError`: hardly an image of the dataset can be read.
        """
        epoch, index = key if isinstance(key, tuple) else (None, key)
        broken: dict[int, str] = {}
        for candidate in islice(chain([index], self._substitutes(epoch, index)), MAX_REPLACEMENTS):
            row = self.dataset[candidate]
            _check_row(row)
            try:
                image = self._open(row["image"])
            except BrokenImageError as error:
                broken[candidate] = str(error)
            else:
                return {**self._sample(epoch, candidate, image, row["caption"]), "broken_images": broken}
        raise ValueError(
            f"{len(broken)} images in a row could not be read, the last one: {broken.popitem()[1]}. Check the image column "
            "and the paths."
        )

    def _open(self, image: Any) -> Image.Image | np.ndarray:
        # Augmentations, and collators of others, want an image.
        load = load_pixels if self.augment is None and self.process_image is not None else load_image
        return load(from_array(image), self.min_image_size)

    def __getitems__(self, keys: list[tuple[int, int] | int]) -> list[dict[str, Any]]:
        return [self[key] for key in keys]

    def _sample(
        self, epoch: int | None, index: int, image: Image.Image | np.ndarray, caption: str | list[str]
    ) -> dict[str, Any]:
        captions = captions_of_row(caption, index)
        caption = captions[0 if epoch is None else keyed_choice(self.seed, epoch, [index], [len(captions)])[0]]
        process_image = self.process_image or (lambda image, **options: image)
        sample = {"index": index, "caption": caption}
        if self.augment is not None:
            view, sample["augmented_caption"] = self.augment(image, caption, self._draws(epoch, index, AUGMENTATION))
            sample["augmented_image"] = process_image(view)
        if self.random_resized_crop is None:
            sample["image"] = process_image(image)
        else:
            part = random_part(image, self.random_resized_crop, self._draws(epoch, index, CROP))
            sample["image"] = process_image(part, stretch=True)
        return sample

    def _draws(self, epoch: int | None, index: int, purpose: int) -> random.Random:
        return random.Random(keyed_seed(*self._key(epoch, index), purpose))

    def _key(self, epoch: int | None, index: int) -> tuple[int, int, int]:
        return self.seed, -1 if epoch is None else epoch, index

    def _substitutes(self, epoch: int | None, index: int) -> Iterator[int]:
        if epoch is None or self.sampler is None:
            draws = random.Random(keyed_seed(*self._key(epoch, index)))
            while True:
                yield draws.randrange(len(self))
        yield from self.sampler.substitutes(epoch, index).tolist()
        yield self._substitute_of_another(epoch, index)

    def _substitute_of_another(self, epoch: int, index: int) -> int:
        """
        For a sample none of whose own substitutes can be read, as happens where the set has few batches: one that no
        other sample of the batch needs. To agree on it, each process tries the images of the whole batch.
        """
        batch = self.sampler.batch(epoch, index).tolist()
        columns = [self.sampler.substitutes(epoch, sample).tolist() for sample in batch]
        needed, without = set(), []
        for sample, column in zip(batch, columns, strict=True):
            if not self._is_readable(sample):
                first = next(filter(self._is_readable, column), None)
                if first is None:
                    without.append(sample)
                else:
                    needed.add(first)
        others = (other for column in columns for other in column if other not in needed and self._is_readable(other))
        found = dict(zip(without, others, strict=False))
        if index not in found:
            raise ValueError(
                f"No readable image is left to fill a batch: nearly all of the {len(self)} images of the set are in it "
                "already, or broken."
            )
        return found[index]

    def _is_readable(self, index: int) -> bool:
        if index not in self._readable:
            try:
                self._open(self.dataset[index]["image"])
                self._readable[index] = True
            except BrokenImageError:
                self._readable[index] = False
        return self._readable[index]


def check_columns(dataset: Dataset) -> None:
    r"""
    Raises:
        `ValueError`: no `image` or `caption` in a table or in a list's first row, or a table with captions that are no text.
    """
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(dataset, pandas.DataFrame):
        raise ValueError(
            "A pandas frame is not read by rows: pass `datasets.Dataset.from_pandas(frame)`, or of a frame with PIL images "
            '`datasets.Dataset.from_list(frame.to_dict("records"))`.'
        )
    if isinstance(dataset, list | tuple) and dataset:
        _check_row(dataset[0])
    if not is_table(dataset) or dataset.format["type"] == "custom":
        return
    from datasets import LargeList, List, Value

    _check_names(dataset.column_names)
    captions = dataset.features["caption"]
    kind = captions.feature if isinstance(captions, List | LargeList) else captions
    if kind not in (Value("string"), Value("large_string")):
        raise ValueError(f"The column `caption` must hold strings or lists of strings, not {captions}.")


def _check_row(row: Any) -> None:
    if not isinstance(row, Mapping):
        raise ValueError(
            f"The data's rows are no dictionaries, but such as a {type(row).__name__}: each needs the keys `image` and "
            "`caption`."
        )
    if "image" not in row or "caption" not in row:
        _check_names(list(row))


def _check_names(names: list[str]) -> None:
    if "pixel_values" in names and "image" not in names:
        raise ValueError(
            "The data holds ready-made `pixel_values`, but CyCLIPTrainer opens and processes images itself, in its workers: "
            "give rows with `image` and `caption`, or train the model with transformers' Trainer and `return_loss` in each "
            "batch."
        )
    for column in ("image", "caption"):
        if column not in names:
            raise ValueError(
                f"The data has no column `{column}`, but {', '.join(map(str, names))}: rename the one that is meant, "
                f'`dataset.rename_column("...", "{column}")`.'
            )


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
    collator in one batch with the others, so that captions are padded alike. They come out under `augmented_` names. What
    the collator returns without an entry for each row, such as `return_loss`, stays as it is.
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [{"image": sample["image"], "caption": sample["caption"]} for sample in samples]
        if "augmented_image" in samples[0]:
            rows += [
                {"image": sample["augmented_image"], "caption": sample["augmented_caption"]} for sample in samples
            ]
            batch = {}
            for name, value in self.collator(rows).items():
                batch[name] = value
                if _num_entries(value) == len(rows):
                    batch[name], batch[f"augmented_{name}"] = value[: len(samples)], value[len(samples) :]
        else:
            batch = dict(self.collator(rows))
        batch["sample_index"] = torch.tensor([sample["index"] for sample in samples])
        batch["broken_images"] = {key: reason for sample in samples for key, reason in sample["broken_images"].items()}
        return batch


def _num_entries(value: Any) -> int | None:
    if isinstance(value, Tensor | np.ndarray):
        return value.shape[0] if value.ndim else None
    return len(value) if isinstance(value, list | tuple) else None


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
