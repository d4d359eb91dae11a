"""What images are by their content, not by their names: digests, images that two sets share, folds of one set."""

import hashlib
import os
from collections.abc import Iterator, Sequence

import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor

from ..data.images import encoded_bytes
from .progress import progress_bar


# Of a larger set, this many images stand for all, evenly spaced.
MAX_SAMPLE = 10_000
# Benchmarks have a few test images among their training images (CIFAR-100 has 4 of 10,000). More is a mistake.
MAX_SHARED = 0.01


def image_digests(dataset: Dataset) -> list[bytes]:
    """A digest of each encoded image in the column `image`. One that cannot be read has that of its name."""
    digests = []
    for images in progress_bar(_structs(dataset), "reading images", unit=" thousand", delay=2):
        for image in images.to_pylist():
            digests.append(hashlib.blake2b(_content(image or {}), digest_size=8).digest())
    return digests


def sample(dataset: Dataset) -> Dataset:
    """At most `MAX_SAMPLE` rows of a set."""
    return dataset.select(range(0, len(dataset), max(1, -(-len(dataset) // MAX_SAMPLE))))


def digest(parts: object) -> str:
    """16 hexadecimal digits of what plain Python objects hold."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def shared_images(test: Dataset, train: Dataset) -> tuple[int, int]:
    """
    How many images of `test` are in `train`, too, and how many were looked for. Only images of equal size are read, since
    a training split may be large.
    """
    test = sample(test)
    sizes = set(_sizes(test)) - {None}
    candidates = [row for row, size in enumerate(_sizes(train)) if size in sizes]
    known = set(image_digests(train.select(candidates)))
    return sum(digest in known for digest in image_digests(test)), len(test)


def folds(digests: Sequence[bytes], labels: Tensor, num_folds: int, seed: int) -> Tensor:
    r"""
    The fold of each image, `(num_images,)`. Equal images share a fold, so that none is among its own reference images, and
    each class is spread evenly.

    Raises:
        `ValueError`: fewer different images than folds, or fewer than two folds.
    """
    first = {}
    for row, one in enumerate(digests):
        first.setdefault(one, row)
    if not 2 <= num_folds <= len(first):
        raise ValueError(
            f"--cross_validate takes at least 2 folds and no more than the {len(first)} different images, got {num_folds}."
        )
    shuffled = torch.randperm(len(digests), generator=torch.Generator().manual_seed(seed)).tolist()
    labels = labels.tolist()
    order = sorted(first, key=lambda one: (labels[first[one]], shuffled[first[one]]))
    fold = {one: position % num_folds for position, one in enumerate(order)}
    return torch.tensor([fold[one] for one in digests])


def _structs(dataset: Dataset) -> Iterator:
    dataset = dataset.select_columns("image").with_format("arrow")
    for batch in dataset.iter(batch_size=1000):
        yield batch["image"].combine_chunks()


def _content(image: dict) -> bytes:
    path = image.get("path") or ""
    try:
        return encoded_bytes({**image, "path": path})
    except OSError:
        return path.encode()


def _sizes(dataset: Dataset) -> list[int | None]:
    sizes = []
    for images in _structs(dataset):
        fields = [field.name for field in images.type]
        if "size" in fields:
            sizes += images.field("size").to_pylist()
            continue
        lengths = pc.binary_length(images.field("bytes")).to_pylist()
        paths = images.field("path").to_pylist()
        sizes += [_file_size(path) if size is None else size for size, path in zip(lengths, paths, strict=True)]
    return sizes


def _file_size(path: str | None) -> int | None:
    return os.path.getsize(path) if path is not None and os.path.isfile(path) else None
