"""Row blocks: the similarities and levels of some queries with all candidates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_rows

from ..batch import Batch
from ..levels import LevelSource
from ..row_blocks import DEFAULT_WORKSPACE
from .passes import Positives


class RankBlock(NamedTuple):
    """Some rows, and their positives."""

    start: int
    similarities: Tensor  # [R, M]
    levels: Tensor  # int8 [R, M]
    row: Tensor  # int64 [P], of the block
    column: Tensor  # int64 [P]


def rows_of(x: Tensor, dtype: torch.dtype, normalize: bool) -> Tensor:
    """Embeddings as the products take them; differentiable."""
    return unit_rows(x.to(dtype), dim=1) if normalize else x.to(dtype)


def dense_operands(batch: Batch) -> tuple[Tensor, Tensor, float]:
    """Queries, all candidates and the workspace in MiB; no candidates of other ranks."""
    whole = batch._replace(arrival=None).all_candidates(batch.dtype)
    q, c = (rows_of(x, batch.dtype, batch.normalize) for x in (batch.queries, whole))
    return q, c, batch.workspace_mb or DEFAULT_WORKSPACE / 2**20


def rank_blocks(
    queries: Tensor, candidates: Tensor, source: LevelSource, pair_bytes: float, workspace_mb: float
) -> Iterator[RankBlock]:
    """Blocks of as many rows as the workspace holds, one at least; `pair_bytes`: of each pair."""
    n, m = len(queries), len(candidates)
    rows = max(1, int(workspace_mb * 2**20 / (m * pair_bytes)))
    for start in range(0, max(n, 1), rows):  # one, too, of a rank without queries
        stop = min(start + rows, n)
        similarities = queries[start:stop] @ candidates.T
        levels = source.block(start, stop, m, queries.device)
        levels, _ = source.under_ceilings(levels, similarities, 0, start)
        row, column = (levels > 0).nonzero(as_tuple=True)
        yield RankBlock(start, similarities, levels, row, column)


def level_counts(levels: Tensor, max_level: int) -> Tensor:
    """int64 `[R, L + 1]`."""
    return torch.stack([(levels == k).sum(dim=1) for k in range(max_level + 1)], dim=1)


def offsets(lengths: Tensor) -> Tensor:
    """`[N + 1]`: where each of the lists of these lengths begins, and the end of the last one."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(dim=0)])


def cat(parts: Sequence[Tensor]) -> Tensor:
    """`torch.cat`, without a copy of a single one."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


def joined(found: list[Positives]) -> tuple[Tensor, ...]:
    """`indptr`, `indices`, `level` and `similarity` of the positives of blocks that follow each
    other.
    """
    indptr = offsets(cat([p.starts.diff() for p in found]))
    rest = ((p.column, p.level, p.similarity) for p in found)
    return (indptr, *(cat(x) for x in zip(*rest, strict=True)))
