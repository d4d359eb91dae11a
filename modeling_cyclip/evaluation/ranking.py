"""Ranks, nearest rows and their votes, in chunks, with ties settled by the lower index. It needs torch alone."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


# Similarities held at once: 128 MB of float32.
MAX_SIMILARITIES = 2**25


def similarity_chunks(queries: Tensor, candidates: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the queries, each with its similarities to all candidates, `(rows, num_candidates)`."""
    rows_at_once = max(1, MAX_SIMILARITIES // len(candidates))
    for start in range(0, len(queries), rows_at_once):
        rows = slice(start, min(start + rows_at_once, len(queries)))
        yield rows, queries[rows] @ candidates.T


def rank_of(similarities: Tensor, targets: Tensor) -> Tensor:
    """
    How many candidates come before each query's target, 0 for the best: from `(num_queries, num_candidates)` and
    `(num_queries,)` to `(num_queries,)`. Of equal similarities the lower index comes first, so that a tie is neither a hit
    nor a miss by itself: a model that gives everything the same similarity scores at chance level.
    """
    own = similarities.gather(1, targets[:, None])
    before = torch.arange(similarities.shape[1], device=similarities.device) < targets[:, None]
    # Not "greater": what is not a number comes before everything, so that a model that has diverged finds nothing.
    return (~(similarities <= own) | ((similarities == own) & before)).sum(dim=1)


def nearest(similarities: Tensor, k: int) -> Tensor:
    """
    Indices of the k most similar candidates, the most similar first: from `(num_queries, num_candidates)` to
    `(num_queries, k)`. Of equal similarities the lower index comes first.
    """
    values, indices = similarities.topk(min(k + 1, similarities.shape[1]), dim=1)
    indices = indices[:, :k]
    # `topk` leaves open which of equal values it takes and in what order. Only a row with equal values among its first
    # k + 1 has to be sorted again.
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1)
    for row in tied.nonzero()[:, 0].tolist():
        indices[row] = similarities[row].argsort(descending=True, stable=True)[:k]
    return indices


def majority_votes(labels: Tensor, ks: Sequence[int]) -> dict[int, Tensor]:
    """
    For each k the label that most of the first k neighbours have, `(num_queries,)`. Where several lead, k is lowered until
    one does. `labels` are those of each query's neighbours, nearest first, `(num_queries, max(ks))`.
    """
    # How often the label in each column has occurred up to there. A label reaches each count in exactly one column.
    # Among the first k columns there are therefore as many leading labels as columns with the highest count.
    same = labels[:, :, None] == labels[:, None, :]
    counts = same.tril().sum(dim=2)
    winners, votes = labels[:, 0], {}
    for k in range(1, max(ks) + 1):
        highest, column = counts[:, :k].max(dim=1)
        one_leads = (counts[:, :k] == highest[:, None]).sum(dim=1) == 1
        winners = torch.where(one_leads, labels.gather(1, column[:, None])[:, 0], winners)
        if k in ks:
            votes[k] = winners
    return votes
