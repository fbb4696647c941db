"""The grain of the top hit: where the exact item is missed, how near is what stands first?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ranks import PositiveRanks
from .arguments import check_level, highest_level
from .mean import has_level


class WrongTop(NamedTuple):
    """Shares of `grain_of_wrong_top`; entry `l - 1` belongs to level l."""

    queries: int  #: queries that take part
    wrong: int  #: those whose top hit is not of level L
    of_wrong: Tensor  #: float64 `[L - 1]`, share of the wrong ones with a top hit of level >= l
    of_all: Tensor  #: float64 `[L]`, share of all that take part with a top hit of level >= l


def top_level(ranks: PositiveRanks) -> Tensor:
    """Level of the top hit of each query: of the positive with rank 1.

    With `ties="optimistic"` several candidates may have rank 1, and the highest level counts; with
    `"pessimistic"` none may, and the level is 0, as if a negative stood first.

    Args:
        ranks: exact ranks of the positives of N queries.

    Returns:
        int64 `[N]`, 0..L; 0 for queries without positives.

    Raises:
        TypeError: smooth ranks.

    Example:
        >>> from grainrank.ranks import positive_ranks
        >>> levels, scores = torch.tensor([[1, 2], [0, 2]]), torch.tensor([[0.9, 0.7]])
        >>> ranks = positive_ranks(torch.ones(2, 1), scores.T, DenseLevels(levels), normalize=False)
        >>> top_level(ranks).tolist()
        [1, 0]
    """
    highest_level(ranks)
    first = ranks.level * (ranks.rank == 1)
    return first.new_zeros(len(ranks.count)).scatter_reduce(0, ranks.row, first, "amax")


def grain_of_wrong_top(ranks: PositiveRanks, min_level: int = 1) -> WrongTop:
    """How often a wrong top hit is at least in the right group of each grain.

    A top hit is wrong where its level (`top_level`) is below L.

        of_wrong[l - 1] = |{l <= top level < L}| / |{top level < L}|,  l = 1..L - 1
        of_all[l - 1]   = |{l <= top level}| / |{queries}|,            l = 1..L

    The first says how bad the errors are, whatever their number; the second holds the right ones
    too, and its last entry is the mean of `success_at(ranks, 1, min_level=L)`.

    Args:
        ranks: exact ranks of the positives of N queries.
        min_level: only queries with a positive of this level or more take part, 1..L, as in
            `mean_over_queries`. L: those whose top hit could have been right.

    Returns:
        `WrongTop`; shares of nothing are 0, see its counts.

    Raises:
        TypeError, ValueError: smooth ranks, or a `min_level` of another type or value.

    Example:
        >>> from grainrank.ranks import positive_ranks
        >>> levels, scores = torch.tensor([[1, 2], [0, 2], [2, 0]]), torch.tensor([[0.9, 0.7]])
        >>> ranks = positive_ranks(torch.ones(3, 1), scores.T, DenseLevels(levels), normalize=False)
        >>> result = grain_of_wrong_top(ranks)
        >>> result.wrong, result.of_wrong.tolist()
        (2, [0.5])
        >>> (3 * result.of_all).tolist()
        [2.0, 1.0]
    """
    max_level = highest_level(ranks)
    check_level("min_level", min_level, max_level)
    top = top_level(ranks)[has_level(ranks, min_level)]
    queries, wrong = len(top), int((top < max_level).sum())
    levels = torch.arange(1, max_level + 1, device=top.device)
    at_least = (top[:, None] >= levels).sum(dim=0).double()  # [L]
    right = at_least[-1]
    return WrongTop(
        queries, wrong, (at_least[:-1] - right) / max(wrong, 1), at_least / max(queries, 1)
    )
