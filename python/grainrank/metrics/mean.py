"""From one value a query to one of all queries."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ranks import PositiveRanks
from ..validation import check_tensor
from .arguments import check_level, highest_level


def has_level(ranks: PositiveRanks, min_level: int) -> Tensor:
    """Queries with a positive of this level or more, bool `[N]`."""
    return ranks.count[:, min_level:].sum(dim=1) > 0


def mean_over_queries(values: Tensor, ranks: PositiveRanks, min_level: int = 1) -> Tensor:
    """Mean over the queries that have a positive of `min_level` or more.

    A query without one has no right answer to be found. trec_eval and ir-measures average over all
    queries of the qrels, those without a relevant document with 0: the mean is the same where the
    qrels hold only queries with a document of `min_level` or more, and else theirs is lower.

    Args:
        values: a metric of the same ranks, `[N]`.
        ranks: exact ranks of the positives of N queries.
        min_level: 1..L; the one that the metric was given.

    Returns:
        float64, 0-d; 0 where no query has such a positive.

    Raises:
        TypeError, ValueError: smooth ranks, values of another shape, or a `min_level` of another
            type or value.

    Example:
        >>> from grainrank.ranks import positive_ranks
        >>> from grainrank.metrics import reciprocal_rank
        >>> levels, scores = torch.tensor([[0, 1], [0, 0]]), torch.tensor([[0.9, 0.7]])
        >>> ranks = positive_ranks(torch.ones(2, 1), scores.T, DenseLevels(levels), normalize=False)
        >>> values = reciprocal_rank(ranks)
        >>> values.tolist(), mean_over_queries(values, ranks).item()
        ([0.5, 0.0], 0.5)
    """
    check_level("min_level", min_level, highest_level(ranks))
    n = len(ranks.count)
    if tuple(check_tensor("values", values).shape) != (n,):
        raise ValueError(
            f"values must have shape [N] = [{n}], one for each query of ranks, "
            f"got {tuple(values.shape)}"
        )
    kept = has_level(ranks, min_level)
    return torch.where(kept, values.double(), 0.0).sum() / kept.sum().clamp_min(1)
