"""Retrieval inside one modality: items of the same class, by mean average precision."""

import torch
from torch import Tensor

from .intervals import Measure
from .ranking import similarity_chunks


def same_class_retrieval(embeds: Tensor, labels: Tensor) -> dict[str, Measure]:
    r"""
    Every item is a query among all others; those of its class are relevant. The average precision of a query is the mean,
    over the relevant items, of the precision at their rank. Items that are alone in their class are no queries.

    Args:
        embeds (`torch.Tensor` of shape `(num_items, dim)`):
            Unit-norm embeddings of one modality.
        labels (`torch.Tensor` of shape `(num_items,)`):
            Classes of the items.

    Returns:
        `dict[str, Measure]`: `mean_average_precision`, over the queries. Of equal similarities the lower index comes
        first.

    Raises:
        `ValueError`: no two items of one class.
    """
    precisions, is_query = [], torch.bincount(labels)[labels] > 1
    if not is_query.any():
        raise ValueError("Retrieval by class needs at least two items of one class.")
    places = torch.arange(1, len(embeds), device=embeds.device)
    for rows, similarities in similarity_chunks(embeds, embeds):
        # The query itself goes last, behind all others, and is cut off.
        similarities.diagonal(rows.start).fill_(float("-inf"))
        order = similarities.argsort(dim=1, descending=True, stable=True)[:, :-1]
        relevant = labels[order] == labels[rows, None]
        precision = relevant.cumsum(dim=1) / places
        precisions.append((precision * relevant).sum(dim=1) / relevant.sum(dim=1))
    return {"mean_average_precision": Measure(torch.cat(precisions)[is_query])}
