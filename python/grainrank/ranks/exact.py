"""Exact ranks: every row is sorted once."""

from __future__ import annotations

import torch
from torch import Tensor

from ..levels import LevelSource
from .blocks import RankBlock, level_counts, offsets, rank_blocks

_BYTES = 40  # of a pair: similarity, order, level, and running counts


def exact_ranks(
    queries: Tensor, candidates: Tensor, source: LevelSource, ties: str, workspace_mb: float
) -> tuple[Tensor, ...]:
    """The fields of `PositiveRanks`."""
    parts: list[tuple[Tensor, ...]] = []
    counts: list[Tensor] = []
    for block in rank_blocks(queries, candidates, source, _BYTES, workspace_mb):
        counts.append(level_counts(block.levels, source.max_level))
        level = block.levels[block.row, block.column].long()
        similarity = block.similarities[block.row, block.column]
        above = _above(block, source.max_level, ties)
        parts.append((block.column, level, similarity, above))
    column, level, similarity, above = (torch.cat(x) for x in zip(*parts, strict=True))
    count = torch.cat(counts)
    return offsets(count[:, 1:].sum(dim=1)), column, level, similarity, above, count


def _above(block: RankBlock, max_level: int, ties: str) -> Tensor:
    """int64 `[P, L + 1]`."""
    s, m = block.similarities, block.similarities.shape[1]
    if ties == "last":
        # A stable sort keeps the order of equal ones.
        order = m - 1 - s.flip(dims=(1,)).argsort(dim=1, descending=True, stable=True)
    else:
        order = s.argsort(dim=1, descending=True, stable=True)
    place = torch.empty_like(order)
    place.scatter_(1, order, torch.arange(m, device=order.device).expand_as(order))
    at = place[block.row, block.column]
    if ties in ("optimistic", "pessimistic"):
        at = _group_edge(s.gather(1, order), block.row, at, first=ties == "optimistic")
    sorted_levels = block.levels.gather(1, order)
    own = block.levels[block.row, block.column].long()
    columns = []
    for k in range(max_level + 1):
        before = torch.cat(
            [
                torch.zeros(len(s), 1, dtype=torch.int64, device=s.device),
                (sorted_levels == k).cumsum(dim=1),
            ],
            dim=1,
        )
        above = before[block.row, at]
        if ties == "pessimistic":
            above = above - (own == k).long()  # itself
        columns.append(above)
    return torch.stack(columns, dim=1)


def _group_edge(values: Tensor, row: Tensor, at: Tensor, first: bool) -> Tensor:
    """Where the run of equal values around a place begins, or the place behind its end."""
    m = values.shape[1]
    new = torch.ones_like(values, dtype=torch.bool)
    new[:, 1:] = values[:, 1:] != values[:, :-1]
    places = torch.arange(m, device=values.device).expand_as(values)
    if first:
        return torch.where(new, places, 0).cummax(dim=1).values[row, at]
    last = torch.ones_like(new)
    last[:, :-1] = new[:, 1:]
    ends = torch.where(last, places + 1, m).flip(dims=(1,)).cummin(dim=1).values.flip(dims=(1,))
    return ends[row, at]
