"""Level statistics: the tables on which every loss head is built, and what a loss step reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .batch import Batch
from .distributed.sums import together
from .heads import level_sums as level_sums_of
from .reference import EMPTY
from .table_sets import TableSet


class LevelStatistics(NamedTuple):
    """Row tables `[N, L + 1]` of the logits `z = scale * similarity`; column l belongs to level l.

    An empty level holds -1e30 in `lse`, `neg_lse` and `highest`, 1e30 in `lowest`, 0 in `total` and
    `count`, -1 in the column tables: finite, so that a difference of two empty levels is 0. Mask
    with `count > 0`. Logits have to stay far below 1e30.
    """

    lse: Tensor  #: `log sum exp(z)` over the level
    neg_lse: Tensor  #: `log sum exp(-z)` over the level; levels >= 1, column 0 holds -1e30
    total: Tensor  #: `sum z` over the level
    count: Tensor  # type: ignore[assignment]  #: number of pairs, int64
    highest: Tensor  #: highest logit of the level
    lowest: Tensor  #: lowest logit of the level
    highest_at: Tensor  #: the (first) candidate that has it, int64
    lowest_at: Tensor  #: the (first) candidate that has it, int64
    #: `sum log(1 + exp(t - z))` over the level, t the log-sum-exp of the level's negatives; None
    #: unless asked for
    softplus: Tensor | None = None


def statistics_of(tables: TableSet, view: int) -> LevelStatistics:
    """The tables `[N, L + 1]` of a view of tables `[V, N, L + 1]`; light ones hold None."""
    t = tables.of(view)
    return LevelStatistics(*t[:8], softplus=t.softplus)  # type: ignore[arg-type]


def empty_statistics(like: LevelStatistics) -> LevelStatistics:
    """What empty levels hold, in the same shapes."""
    values = {
        "lse": EMPTY, "neg_lse": EMPTY, "highest": EMPTY, "lowest": -EMPTY,
        "highest_at": -1, "lowest_at": -1,
    }  # fmt: skip
    tables: dict[str, Any] = {
        name: None if t is None else torch.full_like(t, values.get(name, 0))
        for name, t in like._asdict().items()
    }
    return LevelStatistics(**tables)


class LossStatistics(NamedTuple):
    """What `return_stats=True` adds; detached tensors. A level without any pair has 0."""

    rows_used: Tensor  #: rows with a positive at any level, int64 0-d
    level_loss: Tensor  #: `[L]`, unweighted mean of the level's term over the rows that have it
    level_rows: Tensor  #: `[L]`, int64, these rows
    level_similarity: Tensor  #: `[L + 1]`, mean similarity of the pairs of the level
    level_pairs: Tensor  #: `[L + 1]`, int64, these pairs
    wrong_order: Tensor  #: 0-d, share of adjacent levels of a row with a lower mean for the higher


def loss_statistics(
    channels: Sequence[LevelStatistics], batch: Batch, positives: str, negatives: str
) -> LossStatistics:
    """From the tables of the rows, one for all levels, or one for each level's term; over the rows
    of all ranks.

    Adjacent: next to each other among the levels that the row has.
    """
    with torch.no_grad():
        terms = [level_sums_of(t.lse, t.count, positives, negatives) for t in channels]
        level_sums, level_rows = terms[0]
        if len(terms) > 1:
            level_sums = torch.stack([terms[k][0][k] for k in range(len(terms))])
        total, count = channels[0].total, channels[0].count
        scale = batch.scale if batch.factors is None else batch.scale * batch.factors[0]
        mean = total / count.clamp_min(1)  # [N, L + 1]
        adjacent = torch.zeros_like(count.sum())
        wrong = torch.zeros_like(adjacent)
        below, has_below = mean[:, 0], count[:, 0] > 0
        for level in range(1, count.shape[1]):
            has = count[:, level] > 0
            both = has & has_below
            adjacent = adjacent + both.sum()
            wrong = wrong + (both & (mean[:, level] < below)).sum()
            below = torch.where(has, mean[:, level], below)
            has_below = has_below | has
        pairs, sums = count.sum(dim=0), total.sum(dim=0)
        rows = rows_with_positive(count)
        if batch.shards is not None:
            level_sums, sums, rows, level_rows, pairs, wrong, adjacent = together(
                (level_sums, sums, rows, level_rows, pairs, wrong, adjacent), batch.shards
            )
        return LossStatistics(
            rows_used=rows,
            level_loss=level_sums / level_rows.clamp_min(1),
            level_rows=level_rows,
            level_similarity=sums / scale / pairs.clamp_min(1),
            level_pairs=pairs,
            wrong_order=wrong / adjacent.clamp_min(1),
        )


def rows_with_positive(count: Tensor) -> Tensor:
    """Number of rows with a positive at any level, int64 0-d."""
    return (count[:, 1:].sum(dim=1) > 0).sum()
