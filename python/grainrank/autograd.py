"""Autograd around the operators: what is saved, and the hand-written backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import ops
from .levels import LevelSource
from .sweep import TableSet

_Tensors = tuple[Tensor, ...]


class _LevelTables(torch.autograd.Function):
    """The tables; the backward sweeps again."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        candidates: Tensor,
        scale: Tensor,
        options: tuple[Any, ...],
        full: bool,
        *level_data: Tensor,
    ) -> _Tensors:
        tables: _Tensors = ops.level_tables(queries, candidates, scale, level_data, *options, full)
        ctx.save_for_backward(queries, candidates, scale, *tables, *level_data)
        ctx.options = options
        ctx.full = full
        ctx.set_materialize_grads(False)
        not_differentiable = tables[3:4] + tables[6:]
        ctx.mark_non_differentiable(*not_differentiable)
        return tables

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_tables: Tensor | None) -> tuple[Any, ...]:
        queries, candidates, scale, *rest = ctx.saved_tensors
        tables, level_data = rest[:8], rest[8:]
        d_lse, d_neg_lse, d_total, _, d_highest, d_lowest, _, _ = d_tables
        extra = (d_neg_lse, d_total, d_highest, d_lowest) if ctx.full else (None,) * 4
        needs = ctx.needs_input_grad[:3]
        d_queries, d_candidates, d_scale = ops.level_tables_bwd(
            queries, candidates, scale, level_data, *ctx.options, *tables, d_lse, *extra, *needs
        )
        return (
            d_queries.to(queries.dtype) if needs[0] else None,
            d_candidates.to(candidates.dtype) if needs[1] else None,
            d_scale if needs[2] else None,
            *(None for _ in range(2 + len(level_data))),
        )


class _MultiLevelNCE(torch.autograd.Function):
    """The sum of the losses; its gradients are ready when the forward ends, and are saved."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        candidates: Tensor,
        scale: Tensor,
        level_weights: Tensor,
        options: tuple[Any, ...],
        head: tuple[Any, ...],
        *level_data: Tensor,
    ) -> _Tensors:
        losses, *rest = ops.multi_level_nce(
            queries,
            candidates,
            scale,
            level_data,
            *options,
            level_weights,
            *head,
            *ctx.needs_input_grad[:3],
        )
        tables, gradients = rest[:8], rest[8:]
        # In the accumulation dtype: a float16 gradient before the loss scaler's factor would
        # underflow.
        ctx.save_for_backward(*gradients)
        ctx.dtypes = queries.dtype, candidates.dtype, scale.dtype
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*tables)
        return losses.sum(), *tables

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad
        if d_loss is None:
            return (None,) * len(needs)
        return (
            *(
                (gradient * d_loss).to(dtype) if need else None
                for gradient, dtype, need in zip(ctx.saved_tensors, ctx.dtypes, needs, strict=False)
            ),
            *(None for _ in needs[3:]),
        )


def _options(levels: LevelSource, normalize: bool, backend: str, workspace_mb: float) -> Any:
    return levels.kind, levels.max_level, normalize, backend, workspace_mb


def level_tables(
    queries: Tensor,
    candidates: Tensor,
    scale: Tensor,
    levels: LevelSource,
    normalize: bool,
    backend: str,
    workspace_mb: float,
    full: bool,
) -> TableSet:
    """The differentiable tables."""
    options = _options(levels, normalize, backend, workspace_mb)
    tables = _LevelTables.apply(  # type: ignore[no-untyped-call]
        queries, candidates, scale, options, full, *levels.tensors
    )
    return TableSet(*tables)


def multi_level_nce_sum(
    queries: Tensor,
    candidates: Tensor,
    scale: Tensor,
    levels: LevelSource,
    level_weights: Tensor,
    positives: str,
    negatives: str,
    normalize: bool,
    backend: str,
    workspace_mb: float,
    full: bool,
) -> tuple[Tensor, TableSet]:
    """The sum of the losses, differentiable, and the tables, detached."""
    options = _options(levels, normalize, backend, workspace_mb)
    head = positives, negatives, full
    if torch.is_grad_enabled():
        loss, *tables = _MultiLevelNCE.apply(  # type: ignore[no-untyped-call]
            queries, candidates, scale, level_weights, options, head, *levels.tensors
        )
    else:
        losses, *rest = ops.multi_level_nce(
            queries, candidates, scale, levels.tensors, *options, level_weights, *head,
            False, False, False,
        )  # fmt: skip
        loss, tables = losses.sum(), rest[:8]
    return loss, TableSet(*tables)
