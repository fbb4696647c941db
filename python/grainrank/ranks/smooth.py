"""Smooth ranks: sums of a smooth step, differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..levels import LevelSource
from .blocks import RankBlock, level_counts, offsets, rank_blocks
from .surrogates import Surrogate
from .table import PositiveRanks

_BYTES = 12  # of a pair in the block: similarity, gradient, level
_POSITIVE_BYTES = 24  # of a positive's pair: differences, steps, slopes


def smooth_ranks(
    queries: Tensor,
    candidates: Tensor,
    source: LevelSource,
    step: Surrogate,
    workspace_mb: float,
) -> PositiveRanks:
    """Of rows that are normalised already if they are to be; differentiable."""
    fields = _SmoothRanks.apply(  # type: ignore[no-untyped-call]
        queries, candidates, source, step, workspace_mb
    )
    return PositiveRanks(*fields)


class _SmoothRanks(torch.autograd.Function):
    """The fields of `PositiveRanks`; the backward computes the similarities again."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        candidates: Tensor,
        source: LevelSource,
        step: Surrogate,
        workspace_mb: float,
    ) -> tuple[Tensor, ...]:
        parts: list[tuple[Tensor, ...]] = []
        counts: list[Tensor] = []
        for block in rank_blocks(queries, candidates, source, _BYTES, workspace_mb):
            counts.append(level_counts(block.levels, source.max_level))
            similarity = block.similarities[block.row, block.column]
            above = similarity.new_empty(len(block.row), source.max_level + 1)
            at_least = torch.empty_like(above, dtype=torch.int64)
            for some in _pieces(block, workspace_mb):
                above[some], at_least[some] = _above(block, some, step, source.max_level)
            level = block.levels[block.row, block.column].long()
            parts.append((block.column, level, similarity, above, at_least))
        column, level, similarity, above, at_least = (
            torch.cat(x) for x in zip(*parts, strict=True)
        )
        count = torch.cat(counts)
        ends = offsets(count[:, 1:].sum(dim=1))
        ctx.save_for_backward(queries, candidates)
        ctx.source, ctx.step, ctx.workspace_mb = source, step, workspace_mb
        ctx.mark_non_differentiable(ends, column, level, similarity, count, at_least)
        return ends, column, level, similarity, above, count, at_least

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d: Tensor) -> tuple[Any, ...]:
        queries, candidates = ctx.saved_tensors
        d_above = d[4]
        d_queries, d_candidates = torch.zeros_like(queries), torch.zeros_like(candidates)
        first = 0
        for block in rank_blocks(queries, candidates, ctx.source, _BYTES, ctx.workspace_mb):
            here = d_above[first : first + len(block.row)]
            first += len(block.row)
            g = torch.zeros_like(block.similarities)
            for some in _pieces(block, ctx.workspace_mb):
                _add_gradient(g, block, some, ctx.step, here[some])
            rows = slice(block.start, block.start + len(g))
            with torch.autocast(g.device.type, enabled=False):
                d_queries[rows] = g @ candidates
                d_candidates += g.T @ queries[rows]
        return d_queries, d_candidates, None, None, None


def _pieces(block: RankBlock, workspace_mb: float) -> list[slice]:
    """Some positives at a time."""
    pair = block.similarities.shape[1] * _POSITIVE_BYTES
    size = max(1, int(workspace_mb * 2**20 / pair))
    return [slice(i, i + size) for i in range(0, len(block.row), size)]


def _differences(block: RankBlock, some: slice) -> tuple[Tensor, Tensor, Tensor]:
    """`s_ij - s_ip` `[P, M]`, the levels of j `[P, M]`, -1 for p itself, and of p `[P, 1]`."""
    row, column = block.row[some], block.column[some]
    own = torch.arange(len(row), device=row.device)
    s, levels = block.similarities[row], block.levels[row]
    x = s - s[own, column][:, None]
    of_positive = levels[own, column][:, None]
    levels[own, column] = -1
    return x, levels, of_positive


def _above(block: RankBlock, some: slice, step: Surrogate, max_level: int) -> tuple[Tensor, Tensor]:
    """`above` and `at_least`."""
    x, levels, of_positive = _differences(block, some)
    h, there = step.value(x, levels < of_positive), x >= 0
    at = [levels == k for k in range(max_level + 1)]
    return (
        torch.stack([torch.where(here, h, 0.0).sum(dim=1) for here in at], dim=1),
        torch.stack([(here & there).sum(dim=1) for here in at], dim=1),
    )


def _add_gradient(
    g: Tensor, block: RankBlock, some: slice, step: Surrogate, d_above: Tensor
) -> None:
    """Adds to the gradient of the similarities of the block."""
    x, levels, of_positive = _differences(block, some)
    weight = d_above.gather(1, levels.clamp_min(0).long()).where(levels >= 0, 0.0)
    of_pair = weight * step.slope(x, levels < of_positive)
    row, column = block.row[some], block.column[some]
    g.index_add_(0, row, of_pair)
    g.index_put_((row, column), -of_pair.sum(dim=1), accumulate=True)
