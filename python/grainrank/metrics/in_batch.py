"""Metrics of a training batch from its level statistics, which the loss has computed anyway."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..statistics import LevelStatistics


class InBatch(NamedTuple):
    """Over the rows of a batch; entry `l - 1` belongs to level l. Float64, 0 if no row counts."""

    #: int64 `[L]`: rows with a candidate of level l or more
    rows: Tensor
    #: `[L]`, of these rows the share whose top hit has level l or more: in-batch recall@1 by grain
    success: Tensor
    #: int64 `[L]`: rows with a candidate of level l and one of a lower level
    gap_rows: Tensor
    #: `[L]`, of these rows the mean of the level's lowest logit minus the highest of lower levels
    gap: Tensor
    #: `[L]`, of these rows the share in which the gap is positive: no pair in the wrong order
    separated: Tensor


def in_batch(statistics: LevelStatistics) -> InBatch:
    """How a batch ranks its own candidates, from the tables of `level_statistics`.

    No product, no ranks: the highest and lowest logit of each level say which level the top hit
    has, and whether a level stands above all lower ones. Of equal logits the candidate with the
    lower number is the top hit. For metrics that need ranks see `PositiveRanks.exact`.

    Args:
        statistics: of `level_statistics`, tables `[N, L + 1]`; no gradient flows.

    Returns:
        `InBatch`.

    Raises:
        TypeError: tables without the highest and lowest logits.

    Example:
        >>> x = torch.eye(3)
        >>> found = in_batch(level_statistics(x, x, temperature=0.1))
        >>> found.success.tolist(), found.gap.tolist()
        ([1.0], [10.0])
    """
    if not isinstance(statistics, LevelStatistics) or statistics.highest is None:
        raise TypeError(
            f"statistics must be the LevelStatistics of level_statistics, with the highest logits, "
            f"got {type(statistics).__name__}"
        )
    highest, lowest, count, at = (
        x.detach()
        for x in (
            statistics.highest,
            statistics.lowest,
            statistics.count,
            statistics.highest_at,
        )
    )
    top = highest.amax(dim=1, keepdim=True)
    first = torch.where((highest == top) & (count > 0), at, torch.iinfo(at.dtype).max)
    level = first.argmin(dim=1)  # [N], of the top hit
    size = count.shape[1]
    wanted = torch.arange(1, size, device=count.device)
    has = count.flip(1).cumsum(dim=1).flip(1)[:, 1:] > 0  # [N, L]
    below = highest.cummax(dim=1).values[:, :-1]  # [N, L], of lower levels
    pair = (count[:, 1:] > 0) & (count.cumsum(dim=1)[:, :-1] > 0)
    gap = torch.where(pair, lowest[:, 1:].double() - below.double(), 0.0)
    rows, gap_rows = has.sum(dim=0), pair.sum(dim=0)
    return InBatch(
        rows,
        (has & (level[:, None] >= wanted)).sum(dim=0) / rows.clamp_min(1).double(),
        gap_rows,
        gap.sum(dim=0) / gap_rows.clamp_min(1),
        (gap > 0).sum(dim=0) / gap_rows.clamp_min(1).double(),
    )
