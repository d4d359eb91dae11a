"""Embeddings and labels to try protocols on, and what slow references share."""

import statistics
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F


def random_embeds(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def tied_embeds(rows, dim, seed):
    """Small integers: products are exact, and many are equal. Protocols need no unit norm to rank."""
    return torch.randint(-1, 2, (rows, dim), generator=torch.Generator().manual_seed(seed)).float()


def random_labels(rows, num_classes, seed=0):
    return torch.randint(num_classes, (rows,), generator=torch.Generator().manual_seed(seed))


def values(measures):
    return {name: measure.value for name, measure in measures.items()}


def chances(measures):
    return {name: measure.chance for name, measure in measures.items()}


def over_all_orders(num_candidates, measured):
    """Mean figures over all orders that similarities to the candidates may have: what guessing reaches."""
    found = [values(measured(torch.tensor(order))) for order in permutations(map(float, range(num_candidates)))]
    return {name: statistics.fmean(figures[name] for figures in found) for name in found[0]}


def slow_order(similarities):
    """Indices from the most similar on, of equal ones the lower first."""
    return sorted(range(len(similarities)), key=lambda index: (-similarities[index], index))


# The kinds of embeddings that every ranking protocol is tried on.
KINDS = {
    "random": lambda rows, seed: random_embeds(rows, 6, seed=seed),
    "tied": lambda rows, seed: tied_embeds(rows, 4, seed),
}
both_kinds = pytest.mark.parametrize("embeds", KINDS.values(), ids=KINDS.keys())
