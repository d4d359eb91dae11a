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
    r"""
    Args:
        similarities (`torch.Tensor` of shape `(num_queries, num_candidates)`):
            Similarities.
        targets (`torch.Tensor` of shape `(num_queries,)`):
            The candidate whose rank is asked for.

    Returns:
        `torch.Tensor` of shape `(num_queries,)`: how many candidates come before the target, 0 for the best. Of equal
        similarities the lower index comes first, so that a tie is neither a hit nor a miss by itself: a model that
        gives all the same similarity scores at chance level.
    """
    own = similarities.gather(1, targets[:, None])
    before = torch.arange(similarities.shape[1], device=similarities.device) < targets[:, None]
    # Not "greater": what is not a number comes before all, so that a model that has diverged finds nothing.
    return (~(similarities <= own) | ((similarities == own) & before)).sum(dim=1)


def nearest(similarities: Tensor, k: int) -> Tensor:
    r"""
    Args:
        similarities (`torch.Tensor` of shape `(num_queries, num_candidates)`):
            Similarities.
        k (`int`):
            Number of candidates, at most `num_candidates`.

    Returns:
        `torch.Tensor` of shape `(num_queries, k)`: indices of the most similar candidates, most similar first, of
        equal ones the lower index first.
    """
    values, indices = similarities.topk(min(k + 1, similarities.shape[1]), dim=1)
    indices = indices[:, :k]
    # `topk` leaves open which of equal values it takes and in what order. A row without equal values among the first k
    # and the one after them needs no more.
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1)
    for row in tied.nonzero()[:, 0].tolist():
        indices[row] = similarities[row].argsort(descending=True, stable=True)[:k]
    return indices


def majority_votes(labels: Tensor, ks: Sequence[int]) -> dict[int, Tensor]:
    r"""
    The label that most of the first k neighbours have. Where several lead, k is lowered until one does.

    Args:
        labels (`torch.Tensor` of shape `(num_queries, max(ks))`):
            Labels of each query's neighbours, nearest first.
        ks (`Sequence[int]`):
            Numbers of neighbours that vote.

    Returns:
        `dict[int, torch.Tensor]`: for each k the labels, of shape `(num_queries,)`.
    """
    # How often the label in each column has occurred up to there. A label reaches each count in exactly one column, so
    # among the first k columns the labels that lead are as many as the columns with the highest count.
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
