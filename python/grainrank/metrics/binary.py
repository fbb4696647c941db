"""Metrics that know relevant and not relevant: a candidate is relevant from a level on."""

from __future__ import annotations

from torch import Tensor

from ..ranks import PositiveRanks
from .arguments import check_cutoff, check_level, highest_level


def recall_at(ranks: PositiveRanks, k: int, min_level: int = 1) -> Tensor:
    """`|{relevant with rank <= k}| / |{relevant}|`.

    Args:
        ranks: exact ranks of the positives of N queries.
        k: how many candidates are looked at, 1 or more; there may be fewer.
        min_level: a candidate is relevant from this level on, 1..L.

    Returns:
        float64 `[N]`; 0 for queries without a relevant candidate.

    Raises:
        TypeError, ValueError: smooth ranks, or a `k` or `min_level` of another type or value.

    Source:
        trec_eval, `recall_k`; equal to it with `ties="last"` and ids in ascending order.

    Example:
        >>> from grainrank.ranks import positive_ranks
        >>> levels, scores = torch.tensor([[0, 1, 2]]), torch.tensor([[0.9, 0.5, 0.7]])
        >>> ranks = positive_ranks(torch.ones(1, 1), scores.T, DenseLevels(levels), normalize=False)
        >>> recall_at(ranks, 2).tolist(), recall_at(ranks, 2, min_level=2).tolist()
        ([0.5], [1.0])
    """
    found, relevant = _found(ranks, k, min_level)
    return found / relevant.clamp_min(1)


def precision_at(ranks: PositiveRanks, k: int, min_level: int = 1) -> Tensor:
    """`|{relevant with rank <= k}| / k`.

    Divided by k even where there are fewer candidates.

    Args:
        ranks: exact ranks of the positives of N queries.
        k: how many candidates are looked at, 1 or more.
        min_level: a candidate is relevant from this level on, 1..L.

    Returns:
        float64 `[N]`; 0 for queries without a relevant candidate.

    Raises:
        TypeError, ValueError: smooth ranks, or a `k` or `min_level` of another type or value.

    Source:
        trec_eval, `P_k`; equal to it with `ties="last"` and ids in ascending order. More than 1 is
        possible with `ties="optimistic"`.

    Example:
        >>> from grainrank.ranks import positive_ranks
        >>> levels, scores = torch.tensor([[0, 1, 2]]), torch.tensor([[0.9, 0.5, 0.7]])
        >>> ranks = positive_ranks(torch.ones(1, 1), scores.T, DenseLevels(levels), normalize=False)
        >>> precision_at(ranks, 2).tolist(), precision_at(ranks, 4).tolist()
        ([0.5], [0.5])
    """
    found, _ = _found(ranks, k, min_level)
    return found / k


def success_at(ranks: PositiveRanks, k: int, min_level: int = 1) -> Tensor:
    """1 where a relevant candidate has a rank of k or less, else 0.

    Also called hit rate; work on metric learning calls it recall at k.

    Args:
        ranks: exact ranks of the positives of N queries.
        k: how many candidates are looked at, 1 or more; there may be fewer.
        min_level: a candidate is relevant from this level on, 1..L.

    Returns:
        float64 `[N]`; 0 for queries without a relevant candidate.

    Raises:
        TypeError, ValueError: smooth ranks, or a `k` or `min_level` of another type or value.

    Source:
        trec_eval, `success_k`; equal to it with `ties="last"` and ids in ascending order.

    Example:
        >>> from grainrank.ranks import positive_ranks
        >>> levels, scores = torch.tensor([[0, 1, 2]]), torch.tensor([[0.9, 0.5, 0.7]])
        >>> ranks = positive_ranks(torch.ones(1, 1), scores.T, DenseLevels(levels), normalize=False)
        >>> success_at(ranks, 1).tolist(), success_at(ranks, 2).tolist()
        ([0.0], [1.0])
    """
    found, _ = _found(ranks, k, min_level)
    return (found > 0).double()


def reciprocal_rank(ranks: PositiveRanks, min_level: int = 1) -> Tensor:
    """`1 / rank` of the best relevant candidate. Its mean is the MRR.

    Args:
        ranks: exact ranks of the positives of N queries.
        min_level: a candidate is relevant from this level on, 1..L.

    Returns:
        float64 `[N]`; 0 for queries without a relevant candidate.

    Raises:
        TypeError, ValueError: smooth ranks, or a `min_level` of another type or value.

    Source:
        trec_eval, `recip_rank`; equal to it with `ties="last"` and ids in ascending order.

    Example:
        >>> from grainrank.ranks import positive_ranks
        >>> levels, scores = torch.tensor([[0, 1, 2]]), torch.tensor([[0.9, 0.5, 0.7]])
        >>> ranks = positive_ranks(torch.ones(1, 1), scores.T, DenseLevels(levels), normalize=False)
        >>> reciprocal_rank(ranks).tolist()
        [0.5]
    """
    check_level("min_level", min_level, highest_level(ranks))
    of_positive = (ranks.level >= min_level).double() / ranks.rank
    best = of_positive.new_zeros(len(ranks.count))
    return best.scatter_reduce(0, ranks.row, of_positive, "amax")


def average_precision(ranks: PositiveRanks, min_level: int = 1) -> Tensor:
    """`1 / |R| * sum over relevant p of |{relevant with a rank up to p's}| / rank_p`.

    Its mean is the MAP. Over all candidates, not cut off.

    Args:
        ranks: exact ranks of the positives of N queries.
        min_level: a candidate is relevant from this level on, 1..L.

    Returns:
        float64 `[N]`; 0 for queries without a relevant candidate.

    Raises:
        TypeError, ValueError: smooth ranks, or a `min_level` of another type or value.

    Source:
        trec_eval, `map`; equal to it with `ties="last"` and ids in ascending order.

    Example:
        >>> from grainrank.ranks import positive_ranks
        >>> levels, scores = torch.tensor([[1, 0, 2]]), torch.tensor([[0.9, 0.5, 0.1]])
        >>> ranks = positive_ranks(torch.ones(1, 1), scores.T, DenseLevels(levels), normalize=False)
        >>> average_precision(ranks).tolist()  # (1 / 1 + 2 / 3) / 2
        [0.8333333333333333]
    """
    check_level("min_level", min_level, highest_level(ranks))
    relevant_above = 1 + ranks.above[:, min_level:].sum(dim=1)
    precision = (ranks.level >= min_level) * relevant_above / ranks.rank.double()
    return ranks.by_row(precision) / ranks.count[:, min_level:].sum(dim=1).clamp_min(1)


def _found(ranks: PositiveRanks, k: int, min_level: int) -> tuple[Tensor, Tensor]:
    """Relevant candidates among the best k, float64 `[N]`, and of the row, int64 `[N]`."""
    check_level("min_level", min_level, highest_level(ranks))
    check_cutoff(k)
    found = (ranks.level >= min_level) & (ranks.rank <= k)
    return ranks.by_row(found.double()), ranks.count[:, min_level:].sum(dim=1)
