"""The LambdaLoss framework on the heads of the rankings."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from ..ranks.top_lists import TopLists
from .ranks import ideal_dcg

LambdaScheme = Literal["lambdarank", "ndcg2", "ndcg2++"]

_BYTES = 80  # of a pair: differences, discounts, weights, and gradients


class LambdaWeights(NamedTuple):
    """What a pair of two ranks weighs, for each unit of the gain between them."""

    scheme: LambdaScheme
    mu: float  # the share of "ndcg2" in "ndcg2++"

    def of(self, rank: Tensor, other: Tensor, dtype: torch.dtype) -> Tensor:
        """Of ranks `[..]`, int64, which differ where the result is used."""
        if self.scheme == "lambdarank":
            return self._swap(rank, other, dtype)
        if self.scheme == "ndcg2":
            return self._apart(rank, other, dtype)
        return self._swap(rank, other, dtype) + self.mu * self._apart(rank, other, dtype)

    @staticmethod
    def _swap(rank: Tensor, other: Tensor, dtype: torch.dtype) -> Tensor:
        """What the swap of the two changes: `|1 / D(r_i) - 1 / D(r_j)|`, `D(r) = log2(1 + r)`."""
        return _difference(torch.minimum(rank, other), (rank - other).abs(), dtype)

    @staticmethod
    def _apart(rank: Tensor, other: Tensor, dtype: torch.dtype) -> Tensor:
        """`1 / D(d) - 1 / D(d + 1)` of `d = |r_i - r_j|`."""
        distance = (rank - other).abs().clamp_min(1)
        return _difference(distance, torch.ones_like(distance), dtype)


def _difference(rank: Tensor, further: Tensor, dtype: torch.dtype) -> Tensor:
    """`1 / D(rank) - 1 / D(rank + further)`, as one quotient: the two are nearly equal far down."""
    above, apart = 1 + rank.to(dtype), further.to(dtype)
    return torch.log1p(apart / above) * math.log(2) / (above.log() * (above + apart).log())


def lambda_pairs(
    lists: TopLists,
    gains: Tensor,
    k: int,
    weights: LambdaWeights,
    scale: float,
    workspace_mb: float,
) -> Tensor:
    """The LambdaLoss of each row over pairs of its list.

        loss_i = (1 / ideal_i) sum over a, b: y_a > y_b, min(r_a, r_b) <= k of
                 |gain(y_a) - gain(y_b)| weight(r_a, r_b) log2(1 + exp(-scale (s_a - s_b)))

    Args:
        lists: of the same k.
        gains: of each level, `[L + 1]`, 0 for level 0.
        k: cut-off of the pairs and of the ideal DCG.
        weights: of the ranks; without gradient.
        scale: logits for each unit of the similarity, times sigma.
        workspace_mb: bound of the memory of the pairs.

    Returns:
        The loss of each row, `[N]`; 0 for a row without positives.

    Source:
        Wang et al., The LambdaLoss Framework for Ranking Metric Optimization, CIKM 2018.

    Example:
        >>> from grainrank.levels import as_source
        >>> from grainrank.ranks.top_lists import top_lists
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> lists = top_lists(q, c, as_source(None), k=2, workspace_mb=64.0)
        >>> weights = LambdaWeights("ndcg2", mu=10.0)
        >>> lambda_pairs(lists, torch.tensor([0.0, 1.0]), 2, weights, 20.0, 64.0).shape
        torch.Size([4])
    """
    gains = gains.to(lists.similarity)
    ideal = ideal_dcg(lists.count, gains, k)
    sums = _PairSums.apply(  # type: ignore[no-untyped-call]
        lists.similarity, lists, gains, k, weights, scale, workspace_mb
    )
    return torch.where(ideal > 0, sums / torch.where(ideal > 0, ideal, 1.0), 0.0)


class _PairSums(torch.autograd.Function):
    """`[N]`; the gradient of each entry is known with the sums, since weights have none."""

    @staticmethod
    def forward(
        ctx: Any,
        similarity: Tensor,
        lists: TopLists,
        gains: Tensor,
        k: int,
        weights: LambdaWeights,
        scale: float,
        workspace_mb: float,
    ) -> Tensor:
        sums = similarity.new_zeros(len(lists.indptr) - 1)
        slope = torch.zeros_like(similarity)  # [T], of the row's sum
        for piece in _pieces(lists, workspace_mb):
            entry, there = piece.entries  # [R, T]
            first, positive = piece.positives  # [R, P]
            level, rank = lists.level[entry], lists.rank[entry]
            own_level, own_rank = lists.level[first], lists.rank[first]
            below = there[:, None, :] & positive[:, :, None]
            below &= level[:, None, :] < own_level[:, :, None]
            below &= (rank[:, None, :] <= k) | (own_rank[:, :, None] <= k)
            x = scale * (similarity[first][:, :, None] - similarity[entry][:, None, :])
            weight = weights.of(own_rank[:, :, None], rank[:, None, :], similarity.dtype)
            weight *= (gains[own_level][:, :, None] - gains[level][:, None, :]).abs()
            weight = torch.where(below, weight / math.log(2), 0.0)  # [R, P, T]
            of_pair = torch.where(below, -weight * logsigmoid(x), 0.0)
            sums[piece.rows] += of_pair.sum(dim=(1, 2))
            if ctx.needs_input_grad[0]:
                down = torch.where(below, weight * torch.sigmoid(-x), 0.0) * scale
                # Each entry stands once in a piece: nothing collides.
                slope[entry[there]] += down.sum(dim=1)[there]
                slope[first[positive]] -= down.sum(dim=2)[positive]
        ctx.save_for_backward(slope, lists.indptr)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Any, ...]:
        slope, indptr = ctx.saved_tensors
        d_similarity = slope * d.repeat_interleave(indptr.diff(), output_size=len(slope))
        return d_similarity, None, None, None, None, None, None


class _Piece(NamedTuple):
    """Some rows with their entries, and some of their positives; numbers of entries, and which
    places of these tables are filled.
    """

    rows: Tensor  # int64 [R]
    entries: tuple[Tensor, Tensor]  # int64 and bool [R, T]
    positives: tuple[Tensor, Tensor]  # int64 and bool [R, P]


def _pieces(lists: TopLists, workspace_mb: float) -> Iterator[_Piece]:
    """Rows with about as many positives as each other are together, so that little is padded."""
    positive = (lists.level > 0).nonzero().squeeze(1)
    ends = torch.searchsorted(positive, lists.indptr)  # [N + 1], of the positives
    order = ends.diff().argsort(descending=True, stable=True)
    counts = [-n for n in ends.diff()[order].tolist()]  # ascending
    start, used = 0, bisect.bisect_left(counts, 0)
    while start < used:
        most = -counts[start]
        alike = order[start : bisect.bisect_right(counts, -most / 2)]
        longest = int(lists.indptr.diff()[alike].max())
        size = max(1, int(workspace_mb * 2**20 / (longest * _BYTES)))  # positives of a piece
        some = min(most, size)
        for rows in alike.split(max(1, size // some)):
            entries = _table(lists.indptr, rows, 0, longest)
            for skipped in range(0, most, some):
                place, there = _table(ends, rows, skipped, some)
                yield _Piece(rows, entries, (positive[place], there))
        start += len(alike)


def _table(indptr: Tensor, rows: Tensor, skipped: int, size: int) -> tuple[Tensor, Tensor]:
    """Of lists one behind the other, the numbers of up to `size` members of some of them."""
    starts, stops = indptr[rows, None] + skipped, indptr[rows + 1, None]
    place = starts + torch.arange(size, device=indptr.device)
    there = place < stops
    return torch.where(there, place, 0), there
