"""Ranks of a batch, by the passes of a backend or by the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import backends
from ..batch import Batch
from ..levels import Ceiled
from ..table_sets import Needs
from ..top_k.rows import Rows
from .blocks import dense_operands
from .exact import exact_ranks
from .passes import BlockPasses, TilePasses
from .smooth import smooth_ranks
from .streamed import StreamedBlocks, StreamedRows
from .surrogates import Surrogate
from .sweep import sweep_exact, sweep_rank_gradients, sweep_smooth
from .table import PositiveRanks
from .tiles import sweep_tiles

BLOCK_WORKSPACE = 256.0  # MiB: each block of rows reads all candidates anew


def exact(queries: Rows, candidates: Rows, batch: Batch, backend: str, ties: str) -> PositiveRanks:
    """Exact ranks of rows that are read some at a time; `batch` has everything else."""
    return exact_by(backends.rank_passes(batch, backend), queries, candidates, batch, ties)


def exact_by(
    passes: BlockPasses | TilePasses | None,
    queries: Rows,
    candidates: Rows,
    batch: Batch,
    ties: str,
) -> PositiveRanks:
    """By the passes of a backend; None: by the reference."""
    workspace = batch.workspace_mb or BLOCK_WORKSPACE
    if passes is None or (isinstance(passes, TilePasses) and isinstance(batch.levels, Ceiled)):
        like = torch.empty(0, dtype=batch.dtype, device=batch.queries.device)
        dense_q, dense_c = (
            rows.read(0, len(rows), like, batch.normalize) for rows in (queries, candidates)
        )
        with torch.autocast(like.device.type, enabled=False):
            return PositiveRanks(*exact_ranks(dense_q, dense_c, batch.levels, ties, workspace))
    like = torch.empty(0, dtype=passes.operand_dtype, device=batch.queries.device)
    q = StreamedRows("queries", queries, passes, like, batch.normalize)
    c = StreamedRows("candidates", candidates, passes, like, batch.normalize)
    references = batch.levels.num_references
    if isinstance(passes, TilePasses):
        return PositiveRanks(*sweep_tiles(q, c, passes, references, ties, workspace))
    blocks = StreamedBlocks(q, c, passes, references, workspace)
    return PositiveRanks(*sweep_exact(blocks, passes, ties))


def smooth(batch: Batch, backend: str, step: Surrogate) -> PositiveRanks:
    """Smooth ranks, differentiable. One prefix; no candidates of other ranks."""
    if backends.resolve(backend, batch.queries.device) != "reference" and len(batch.queries) > 0:
        *fields, _ = _SweptRanks.apply(  # type: ignore[no-untyped-call]
            batch.queries, batch.candidates, batch, backend, step
        )
        return PositiveRanks(*fields)
    q, c, workspace = dense_operands(batch)
    with torch.autocast(q.device.type, enabled=False):
        return smooth_ranks(q, c, batch.levels, step, workspace)


class _SweptRanks(torch.autograd.Function):
    """The fields of `PositiveRanks`, and the slopes; the backward sweeps again."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, candidates: Tensor, batch: Batch, backend: str, step: Surrogate
    ) -> tuple[Tensor, ...]:
        passes = backends.rank_passes(batch, backend)
        assert passes is not None
        fields = sweep_smooth(batch, passes, step)
        indptr, indices, level, similarity, _, count, at_least, slope = fields
        ctx.save_for_backward(queries, candidates, slope)
        ctx.rest = batch, backend, step
        ctx.mark_non_differentiable(indptr, indices, level, similarity, count, at_least, slope)
        return fields

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d: Tensor) -> tuple[Any, ...]:
        queries, candidates, slope = ctx.saved_tensors
        batch, backend, step = ctx.rest
        batch = batch._replace(queries=queries, candidates=candidates)
        passes = backends.rank_passes(batch, backend)
        assert passes is not None
        needs = Needs(ctx.needs_input_grad[0], ctx.needs_input_grad[1], scale=False)
        gradients = sweep_rank_gradients(batch, passes, step, d[4], slope, needs)
        d_queries = gradients.queries.to(queries.dtype) if needs.queries else None
        d_candidates = gradients.candidates.to(candidates.dtype) if needs.candidates else None
        return d_queries, d_candidates, None, None, None
