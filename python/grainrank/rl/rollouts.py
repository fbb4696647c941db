"""Rollouts `[G, N, D]`: their checks, and the chunks of rows in which they are ranked."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..backends import Backend
from ..levels import (
    DenseLevels,
    Diagonal,
    FalseNegativeMargin,
    GrainKeys,
    LevelSource,
    SparseLevels,
    as_source,
)
from ..losses import level_statistics
from ..validation import FLOAT_DTYPES, check_embeddings, check_finite, check_tensor

_CHUNK = 64 * 2**20  # bytes of ranks at a time


def check_rollouts(
    rollouts: object, candidates: object, levels: LevelSource | None
) -> tuple[Tensor, Tensor, LevelSource]:
    """Rollouts `[G, N, D]` and candidates `[M, D]` without gradient, and the level source."""
    r = check_tensor("rollouts", rollouts).detach()
    if r.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"rollouts must be float16, bfloat16, float32 or float64, got {r.dtype}; "
            f"convert them with rollouts.float()"
        )
    if r.dim() != 3:
        mend = "; pass rollouts[None] for a single one" if r.dim() == 2 else ""
        raise ValueError(f"rollouts must have shape [G, N, D], got {tuple(r.shape)}{mend}")
    if r.numel() == 0:
        raise ValueError(
            f"rollouts must have at least one rollout, row and feature, got {tuple(r.shape)}; "
            f"skip the step for an empty batch"
        )
    _, c = check_embeddings(r[0], candidates)
    for g, rollout in enumerate(r):
        check_finite("rollouts", rollout, f" of rollout {g}; look at the policy's output")
    check_finite("candidates", c, "; look at the encoder's output")
    source = as_source(levels)
    if isinstance(source, FalseNegativeMargin) and source.reference is None:
        raise ValueError(
            "levels of rewards must not depend on the rollouts, got a false_negative_margin of "
            "their own similarity: negatives would leave the reward by rising; pass reference= to "
            "false_negative_margin"
        )
    source.check(r.shape[1], len(c), r.device)
    return r, c.detach(), source


def check_fixed_levels(
    levels: LevelSource | None, num_queries: int, num_candidates: int, device: torch.device
) -> LevelSource:
    """The level source, which must be the same whatever the embeddings are."""
    source = as_source(levels)
    if isinstance(source, FalseNegativeMargin):
        raise ValueError(
            "levels must not depend on the embeddings, got a false_negative_margin; "
            "pass the level source that it was made from"
        )
    source.check(num_queries, num_candidates, device)
    return source


def rows_of_levels(
    source: LevelSource, start: int, stop: int, num_candidates: int, device: torch.device
) -> LevelSource:
    """The levels of the rows `start..stop` alone. `device` is for a source without tensors."""

    def some_columns(matrix: LevelSource) -> LevelSource:
        if isinstance(matrix, Diagonal):
            numbers = torch.arange(max(num_candidates, stop), device=device)[:, None]
            return GrainKeys(numbers[:num_candidates], numbers[start:stop])
        if isinstance(matrix, DenseLevels):
            return DenseLevels(matrix.tensors[0][:, start:stop], matrix.max_level)
        assert isinstance(matrix, SparseLevels)
        row, column, level = matrix.entries()
        inside = (column >= start) & (column < stop)
        entries = row[inside], column[inside] - start, level[inside]
        return SparseLevels.from_entries(entries, (num_candidates, stop - start), matrix.max_level)

    # The rows of a source are the columns of its transposed form.
    return source.transposed().with_columns(lambda x: x[start:stop], some_columns).transposed()


def row_chunks(
    source: LevelSource,
    num_queries: int,
    num_candidates: int,
    device: torch.device,
    *,
    backend: Backend,
    workspace_mb: float | None,
) -> Iterator[tuple[int, int]]:
    """Where chunks of rows begin and end whose ranks take about 64 MiB, of a row at least."""
    size = source.max_level + 1
    # The counts above a positive, twice, its numbers, and what sorts them; sums of pairs of levels.
    of_positive, of_row = 16 * size + 120, 32 * size * size
    if num_queries * (of_row + num_candidates * of_positive) <= _CHUNK:
        yield 0, num_queries
        return
    # One feature: the levels alone count.
    ones = torch.ones(max(num_queries, num_candidates), 1, device=device)
    count = level_statistics(
        ones[:num_queries],
        ones[:num_candidates],
        source,
        temperature=1.0,
        normalize=False,
        backend=backend,
        workspace_mb=workspace_mb,
    ).count
    held = (of_row + of_positive * count[:, 1:].sum(dim=1)).cumsum(dim=0).cpu()  # [N]
    start, before = 0, 0
    while start < num_queries:
        stop = max(start + 1, int(torch.searchsorted(held, before + _CHUNK, right=True)))
        yield start, stop
        start, before = stop, int(held[stop - 1])
