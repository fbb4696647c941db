"""Row blocks: the similarities and levels of some queries with all candidates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_rows

from ..levels import LevelSource


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


def row_ends(counts: list[Tensor]) -> Tensor:
    """`[N + 1]`, from the levels' counts of each block."""
    positives = torch.cat(counts)[:, 1:].sum(dim=1)
    return torch.cat([positives.new_zeros(1), positives.cumsum(dim=0)])
