"""Metrics of the levels: nDCG, and the pairs in the wrong order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..heads import ideal_dcg
from ..ranks import PositiveRanks
from ..validation import check_choice
from .arguments import check_cutoff, highest_level, level_table


def ndcg_at(
    ranks: PositiveRanks,
    k: int | None = None,
    *,
    gain: Literal["linear", "exp2"] | Sequence[float] | Tensor,
) -> Tensor:
    """`DCG / ideal DCG`, `DCG = sum over positives with rank <= k of gain(level) / log2(1 + rank)`.

    The ideal DCG is that of the candidates in the order of their gains, over the first k.

    Args:
        ranks: exact ranks of the positives of N queries.
        k: how many candidates are looked at, 1 or more; None (default): all.
        gain: `"linear"`: the level; `"exp2"`: `2^level - 1`; or a number of each level, `[L + 1]`,
            not negative, 0 for level 0. There is no default: both are called nDCG.

    Returns:
        float64 `[N]`; 0 for queries without a candidate with a gain.

    Raises:
        TypeError, ValueError: smooth ranks, or a `k` or `gain` of another type, length or value.

    Source:
        Jarvelin and Kekalainen, TOIS 2002, with the discount of trec_eval; `"exp2"`: Burges et al.,
        ICML 2005. `"linear"` equals trec_eval's `ndcg_cut_k` and `ndcg` with `ties="last"` and ids
        in ascending order. More than 1 is possible with `ties="optimistic"`.

    Example:
        >>> from grainrank.ranks import positive_ranks
        >>> levels, scores = torch.tensor([[1, 2, 0]]), torch.tensor([[0.9, 0.7, 0.5]])
        >>> ranks = positive_ranks(torch.ones(1, 1), scores.T, DenseLevels(levels), normalize=False)
        >>> ndcg_at(ranks, 1, gain="linear").tolist(), ndcg_at(ranks, 1, gain=[0, 1, 4]).tolist()
        ([0.5], [0.25])
    """
    max_level = highest_level(ranks)
    if k is not None:
        check_cutoff(k)
    gains = _gains(gain, max_level, ranks.count.device)
    rank = ranks.rank
    of_positive = gains[ranks.level] / (1 + rank).double().log2()
    if k is not None:
        of_positive = torch.where(rank <= k, of_positive, 0.0)
    ideal = ideal_dcg(ranks.count, gains, k)
    return ranks.by_row(of_positive) / torch.where(ideal > 0, ideal, 1.0)


def level_violation_rate(ranks: PositiveRanks) -> Tensor:
    """Share of the pairs (positive, candidate of a lower level) that stand in the wrong order.

        sum over positives p, levels l < level_p of above[p, l]
        / sum over positives p, levels l < level_p of count[l]

    Level 0 is a lower level, pairs of level -1 take no part. 0: every level stands above all lower
    ones; 1/2: random order. With L = 1 it is 1 minus the area under the ROC curve. Equals are in
    the wrong order with `ties="pessimistic"`, in the right one with `"optimistic"`, and else by
    their numbers.

    Args:
        ranks: exact ranks of the positives of N queries.

    Returns:
        float64 `[N]`; 0 for queries without such a pair.

    Raises:
        TypeError: smooth ranks.

    Example:
        >>> from grainrank.ranks import positive_ranks
        >>> levels, scores = torch.tensor([[1, 2, 0]]), torch.tensor([[0.9, 0.7, 0.5]])
        >>> ranks = positive_ranks(torch.ones(1, 1), scores.T, DenseLevels(levels), normalize=False)
        >>> level_violation_rate(ranks).tolist()  # of (2, 1), (2, 0), (1, 0) the first
        [0.3333333333333333]
    """
    levels = torch.arange(highest_level(ranks) + 1, device=ranks.level.device)
    lower = levels < ranks.level[:, None]  # [P, L + 1]
    wrong = ranks.by_row((ranks.above * lower).sum(dim=1))
    below = ranks.count.cumsum(dim=1) - ranks.count  # [N, L + 1]
    pairs = (ranks.count * below)[:, 1:].sum(dim=1)
    return wrong.double() / pairs.clamp_min(1)


def _gains(gain: str | Sequence[float] | Tensor, max_level: int, device: torch.device) -> Tensor:
    """float64 `[L + 1]`."""
    if not isinstance(gain, str):
        return level_table("gain", gain, max_level, device)
    check_choice("gain", gain, ("linear", "exp2"))
    level = torch.arange(max_level + 1, dtype=torch.float64, device=device)
    return level if gain == "linear" else 2**level - 1
