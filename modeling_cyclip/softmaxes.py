"""The softmaxes of the contrastive loss, over the rows and over the columns of the logits, from blocks of rows."""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .distributed import all_gather_stack, all_reduce_sum


# Logits of up to 64 MB in float32 are kept between the loss and its gradient: another product would take longer.
MAX_STORED_LOGITS = 2**24
# Beyond, blocks of this size are large enough for fast products and small beside the towers' activations.
BLOCK_BYTES = 2**24
# exp(70) summed over 2^24 columns stays below float32's maximum, and exp(-70) is normal with 7 digits to spare below it.
LARGEST_EXPONENT = 70.0


def row_blocks(num_rows: int, num_columns: int, itemsize: int) -> list[slice]:
    """The rows whose logits are in memory at once: all of them, or as many as [`BLOCK_BYTES`] hold."""
    size = num_rows
    if num_rows * num_columns > MAX_STORED_LOGITS:
        size = max(1, BLOCK_BYTES // (num_columns * itemsize))
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


class _Softmaxes:
    """Of `num_rows` rows of this process, whose pairs lie from the column `first_column` on. `factor` multiplies gradients."""

    def __init__(self, num_rows: int, first_column: int, scale: Tensor | float, factor: Tensor | float):
        self.first_column, self.scale, self.factor = first_column, scale, factor
        self.own = slice(first_column, first_column + num_rows)
        # Of each block of rows, and of all columns.
        self.pairs, self.row_maxima, self.row_rests = [], [], []
        self.column_max = self.column_rest = None


class OneExponential(_Softmaxes):
    """
    Both softmaxes from one exponential an entry, and its sums over rows and over columns.

    The exponentials of the pairs, p, are summed apart from the others, and the loss is log(1 + others / p): the loss of a
    nearly solved batch then keeps its digits. One shift of all logits makes exponentials fit into float32 unless a pair's
    logit is far below the largest possible one, `scale`. `combine` says whether they do; at scales of up to 70 and unit-norm
    embeddings they always do.
    """

    def add(self, rows: slice, logits: Tensor) -> Tensor:
        """Takes in the logits of these rows, which follow those before. Returns what `grad_logits` wants of them."""
        exponentials = self.again(rows, logits)
        pairs = exponentials.diagonal(self.first_column + rows.start)
        self.pairs.append(pairs.clone())
        pairs.zero_()
        self.row_rests.append(exponentials.sum(dim=1))
        column_rest = exponentials.sum(dim=0)
        self.column_rest = column_rest if self.column_rest is None else self.column_rest.add_(column_rest)
        return exponentials

    def again(self, rows: slice, logits: Tensor) -> Tensor:
        """The same for rows that were added before."""
        shift = self.scale - LARGEST_EXPONENT
        return (logits.sub_(shift) if shift > 0 else logits).exp_()

    def combine(self, process_group: dist.ProcessGroup | None) -> bool:
        """Combines the columns' sums of all processes. Returns in all of them whether float32 could hold everything."""
        pair, row_rest, column_rest = torch.cat(self.pairs), torch.cat(self.row_rests), self.column_rest
        if process_group is not None:
            columns = column_rest.new_zeros(2, len(column_rest))
            columns[0], columns[1, self.own] = column_rest, pair
            column_rest, column_pair = all_reduce_sum(columns, process_group)
        rests = torch.stack([row_rest, column_rest[self.own]])
        sums = rests + pair
        self.gaps = (rests / pair).log1p_()
        weights = sums.reciprocal().mul_(self.factor)
        self.row_weight, self.column_weight = weights.unbind()
        # The probability of a pair less 1 is that of all others, negated.
        self.others = torch.linalg.vecdot(rests, weights, dim=0).neg_()
        if process_group is not None:
            self.column_weight = self.factor / (column_rest + column_pair)
        is_wrong = not (pair.min().item() >= math.exp(-LARGEST_EXPONENT) and sums.max().item() < math.inf)
        if process_group is not None:
            is_wrong = all_reduce_sum(pair.new_tensor(float(is_wrong)), process_group).item() > 0
        return not is_wrong

    def grad_logits(self, rows: slice, exponentials: Tensor) -> Tensor:
        """`factor` times the sum of both softmaxes less 2 on the pairs, in place of `exponentials`."""
        exponentials *= self.row_weight[rows, None] + self.column_weight
        exponentials.diagonal(self.first_column + rows.start).copy_(self.others[rows])
        return exponentials


class TwoExponentials(_Softmaxes):
    """
    Both softmaxes from the maximum of every row and of every column, which no logits can overflow. Pairs are kept apart as in
    [`OneExponential`], whose methods it has.
    """

    def add(self, rows: slice, logits: Tensor) -> Tensor:
        first = self.first_column + rows.start
        row_max, column_max = logits.amax(dim=1), logits.amax(dim=0)
        if self.column_max is not None:
            column_max = torch.maximum(self.column_max, column_max)
            self.column_rest *= torch.exp(self.column_max - column_max)
        self.column_max = column_max
        self.pairs.append(logits.diagonal(first).clone())
        self.row_maxima.append(row_max)
        exponentials = (logits - row_max[:, None]).exp_()
        exponentials.diagonal(first).zero_()
        self.row_rests.append(exponentials.sum(dim=1))
        exponentials = torch.sub(logits, column_max, out=exponentials).exp_()
        exponentials.diagonal(first).zero_()
        column_rest = exponentials.sum(dim=0)
        self.column_rest = column_rest if self.column_rest is None else self.column_rest.add_(column_rest)
        return logits

    def again(self, rows: slice, logits: Tensor) -> Tensor:
        return logits

    def combine(self, process_group: dist.ProcessGroup | None) -> bool:
        matched, row_max, row_rest = (torch.cat(parts) for parts in (self.pairs, self.row_maxima, self.row_rests))
        column_pair = torch.zeros_like(self.column_rest)
        column_pair[self.own] = torch.exp(matched - self.column_max[self.own])
        columns = all_gather_stack(torch.stack([self.column_max, self.column_rest, column_pair]), process_group)
        maxima, rests, pairs = columns.unbind(dim=1)
        column_max = maxima.amax(dim=0)
        shrink = torch.exp(maxima - column_max)
        rest, pair = (rests * shrink).sum(dim=0), (pairs * shrink).sum(dim=0)
        # log(1 + others / pair), with the logarithm of the quotient in its place, for the pair may underflow.
        self.row_gap = F.softplus(row_rest.log() + (row_max - matched), threshold=50)
        self.column_gap = F.softplus(rest[self.own].log() + (column_max[self.own] - matched), threshold=50)
        self.row_logsumexp, self.column_logsumexp = matched + self.row_gap, column_max + (rest + pair).log()
        self.gaps = torch.stack([self.row_gap, self.column_gap])
        return True

    def grad_logits(self, rows: slice, logits: Tensor) -> Tensor:
        probabilities = (logits - self.row_logsumexp[rows, None]).exp_()
        probabilities += logits.sub_(self.column_logsumexp).exp_()
        others = torch.expm1(-self.row_gap[rows]) + torch.expm1(-self.column_gap[rows])
        probabilities.diagonal(self.first_column + rows.start).copy_(others)
        return probabilities.mul_(self.factor)
