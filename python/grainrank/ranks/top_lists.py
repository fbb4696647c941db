"""The head of each row's ranking: its best candidates, and its positives wherever they stand."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..levels import LevelSource
from .blocks import level_counts, offsets, rank_blocks
from .entries import entry_gradients

_BYTES = 48  # of a pair in the block: similarity, order, levels, and running counts


class TopLists(NamedTuple):
    """The k best candidates of each row and all its positives, best first.

    Pairs of level -1 take no part, and no place.
    """

    indptr: Tensor  # int64 [N + 1]: row i has the entries indptr[i]..indptr[i + 1]
    indices: Tensor  # int64 [T], their candidates
    level: Tensor  # int64 [T], 0..L
    rank: Tensor  # int64 [T], exact, among all candidates of the row; 1 for the best
    similarity: Tensor  # [T], differentiable
    count: Tensor  # type: ignore[assignment]  # int64 [N, L + 1], pairs of each level


def top_lists(
    queries: Tensor, candidates: Tensor, source: LevelSource, k: int, workspace_mb: float
) -> TopLists:
    """Of rows that are normalised already if they are to be; O(N k + P) memory beside a row block.

    Of equal similarities the candidate with the lower number stands first.
    """
    fields = _TopLists.apply(  # type: ignore[no-untyped-call]
        queries, candidates, source, k, workspace_mb
    )
    return TopLists(*fields)


class _TopLists(torch.autograd.Function):
    """The fields of `TopLists`; the gradient is of the entries alone, no product over all pairs."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        candidates: Tensor,
        source: LevelSource,
        k: int,
        workspace_mb: float,
    ) -> tuple[Tensor, ...]:
        parts, lengths, counts = [], [], []
        for block in rank_blocks(queries, candidates, source, _BYTES, workspace_mb):
            counts.append(level_counts(block.levels, source.max_level))
            order = block.similarities.argsort(dim=1, descending=True, stable=True)  # [R, M]
            levels = block.levels.gather(1, order)
            ranks = (levels >= 0).cumsum(dim=1)
            chosen = (levels > 0) | ((levels == 0) & (ranks <= k))
            lengths.append(chosen.sum(dim=1))
            row, place = chosen.nonzero(as_tuple=True)
            column = order[row, place]
            similarity = block.similarities[row, column]
            parts.append((column, levels[row, place].long(), ranks[row, place], similarity))
        indices, level, rank, similarity = (torch.cat(x) for x in zip(*parts, strict=True))
        indptr, count = offsets(torch.cat(lengths)), torch.cat(counts)
        ctx.save_for_backward(queries, candidates, indptr, indices)
        ctx.mark_non_differentiable(indptr, indices, level, rank, count)
        return indptr, indices, level, rank, similarity, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d: Tensor) -> tuple[Any, ...]:
        queries, candidates, indptr, indices = ctx.saved_tensors
        d_queries, d_candidates = entry_gradients(
            queries, candidates, indptr, indices, d[4], ctx.needs_input_grad[:2]
        )
        return d_queries, d_candidates, None, None, None
