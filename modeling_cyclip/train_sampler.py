"""Which of the samplers a training set calls for."""

from collections.abc import Iterator

from torch.utils.data import Dataset
from transformers.utils import logging

from .sampler import EpochSampler
from .samples import is_table
from .shard_sampler import ShardSampler, UniqueCaptionShardSampler
from .unique_captions import UniqueCaptionSampler


logger = logging.get_logger(__name__)


def make_train_sampler(dataset: Dataset, batch_size: int, seed: int, no_duplicate_captions: bool) -> EpochSampler:
    r"""
    Args:
        dataset (`datasets.Dataset` or `torch.utils.data.Dataset`):
            The training set. A table with a column `shard` is read from few shards at a time.
        batch_size (`int`):
            Pairs of a whole step, over all processes.
        seed (`int`):
            Seed of the order.
        no_duplicate_captions (`bool`):
            Whether to keep two samples with the same caption out of one batch, where the set is a table and has enough
            different captions.

    Returns:
        [`EpochSampler`]

    Raises:
        `ValueError`: a dataset that does not fill one batch.
    """
    in_shards = is_table(dataset) and "shard" in dataset.column_names
    if in_shards:
        shards = dataset.with_format("numpy", columns=["shard"])[:]["shard"]
        sampler = ShardSampler(shards, batch_size, seed)
    else:
        sampler = EpochSampler(len(dataset), batch_size, seed)
    if not no_duplicate_captions or not is_table(dataset):
        return sampler
    captions = _captions(dataset)
    if in_shards:
        unique = UniqueCaptionShardSampler(captions, shards, batch_size, seed)
    else:
        unique = UniqueCaptionSampler(captions, batch_size, seed)
    if len(unique) < len(sampler) // 2:
        logger.warning(
            f"`no_duplicate_captions` has no effect here: the data has too few different captions for batches of "
            f"{batch_size} without repeats."
        )
        return sampler
    if len(unique) < len(sampler):
        logger.info(f"{len(sampler) - len(unique)} pairs sit out each epoch so that no batch repeats a caption.")
    return unique


def _captions(dataset: Dataset) -> Iterator[str | list[str]]:
    # By batches: iterating over the column itself would take its rows one by one.
    for batch in dataset.select_columns("caption").iter(batch_size=1000):
        yield from batch["caption"]
