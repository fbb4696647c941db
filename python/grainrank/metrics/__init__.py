"""Retrieval metrics, computed from the exact ranks of the positives (`grainrank.ranks`).

A metric takes `PositiveRanks` and gives one value a query, float64 `[N]`: 0 for a query without a
positive that could count, never NaN. `mean_over_queries` leaves such queries out.

What equal similarities mean was said when the ranks were made. With `ties="first"` and
`ties="last"` a row is ranked in one order; `"last"`, with candidates in the ascending order of
their ids, is the order of trec_eval (descending ids among equals), and the values equal its own.
With `"optimistic"` and `"pessimistic"` each positive has its best or its worst place on its own:
positives that tie share a rank, so that precision and nDCG may exceed 1 under `"optimistic"`.

While training, the ranks that a loss was computed from have exact ones beside them
(`PositiveRanks.exact`), and level statistics say more (`in_batch`): both cost no product.
"""

from .binary import (
    average_precision,
    precision_at,
    recall_at,
    reciprocal_rank,
    success_at,
)
from .graded import level_violation_rate, ndcg_at
from .grains import WrongTop, grain_of_wrong_top, top_level
from .hierarchical import hierarchical_average_precision
from .in_batch import InBatch, in_batch
from .mean import mean_over_queries

__all__ = [
    "InBatch",
    "WrongTop",
    "average_precision",
    "grain_of_wrong_top",
    "hierarchical_average_precision",
    "in_batch",
    "level_violation_rate",
    "mean_over_queries",
    "ndcg_at",
    "precision_at",
    "recall_at",
    "reciprocal_rank",
    "success_at",
    "top_level",
]
