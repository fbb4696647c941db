"""The operators: `torch.library` schemas, implementations and fakes, and autograd around them.

A level source crosses the boundary as `level_kind` and `level_data` (`levels.from_parts`). Tables
that are not wanted, and gradients that are not needed, come back as empty tensors, so that the
number of results is fixed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backends
from .levels import LevelSource, from_parts
from .sweep import Batch, Needs, TableGradientSet, TableSet
from .validation import accumulation_dtype

_library = torch.library.Library("grainrank", "FRAGMENT")

_BATCH = (
    "Tensor queries, Tensor candidates, Tensor scale, Tensor[] level_data, str level_kind, "
    "int max_level, bool normalize, str backend, float workspace_mb"
)
_TABLES = (
    "Tensor lse, Tensor neg_lse, Tensor total, Tensor count, "
    "Tensor highest, Tensor lowest, Tensor highest_at, Tensor lowest_at"
)
_NEEDS = "bool need_queries, bool need_candidates, bool need_scale"
_GRADIENTS = "Tensor d_queries, Tensor d_candidates, Tensor d_scale"

_library.define(f"level_tables({_BATCH}, bool full) -> ({_TABLES})")
_library.define(
    f"level_tables_bwd({_BATCH}, {_TABLES}, Tensor? d_lse, Tensor? d_neg_lse, Tensor? d_total, "
    f"Tensor? d_highest, Tensor? d_lowest, {_NEEDS}) -> ({_GRADIENTS})"
)
_library.define(
    f"multi_level_nce({_BATCH}, Tensor level_weights, str positives, str negatives, bool full, "
    f"{_NEEDS}) -> (Tensor losses, {_TABLES}, {_GRADIENTS})"
)

_Tensors = tuple[Tensor, ...]


@contextlib.contextmanager
def _plain(queries: Tensor) -> Any:
    """Neither autograd nor autocast inside an operator: its dtypes are its own."""
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        yield


def _batch(
    queries: Tensor,
    candidates: Tensor,
    scale: Tensor,
    level_data: Sequence[Tensor],
    level_kind: str,
    max_level: int,
    normalize: bool,
    workspace_mb: float,
) -> Batch:
    source = from_parts(level_kind, level_data, max_level)
    return Batch(queries, candidates, scale, source, normalize, workspace_mb)


def _flat(tables: TableSet) -> _Tensors:
    empty = tables.lse.new_empty
    return tuple(empty(0) if table is None else table for table in tables)


def _level_tables(
    queries: Tensor,
    candidates: Tensor,
    scale: Tensor,
    level_data: Sequence[Tensor],
    level_kind: str,
    max_level: int,
    normalize: bool,
    backend: str,
    workspace_mb: float,
    full: bool,
) -> _Tensors:
    with _plain(queries):
        batch = _batch(
            queries, candidates, scale, level_data, level_kind, max_level, normalize, workspace_mb
        )
        return _flat(backends.tables(batch, backend, full))


def _level_tables_bwd(
    queries: Tensor,
    candidates: Tensor,
    scale: Tensor,
    level_data: Sequence[Tensor],
    level_kind: str,
    max_level: int,
    normalize: bool,
    backend: str,
    workspace_mb: float,
    lse: Tensor,
    neg_lse: Tensor,
    total: Tensor,
    count: Tensor,
    highest: Tensor,
    lowest: Tensor,
    highest_at: Tensor,
    lowest_at: Tensor,
    d_lse: Tensor | None,
    d_neg_lse: Tensor | None,
    d_total: Tensor | None,
    d_highest: Tensor | None,
    d_lowest: Tensor | None,
    need_queries: bool,
    need_candidates: bool,
    need_scale: bool,
) -> _Tensors:
    with _plain(queries):
        batch = _batch(
            queries, candidates, scale, level_data, level_kind, max_level, normalize, workspace_mb
        )
        saved = TableSet(lse, neg_lse, total, count, highest, lowest, highest_at, lowest_at)
        d_tables = TableGradientSet(
            torch.zeros_like(lse) if d_lse is None else d_lse,
            d_neg_lse,
            d_total,
            d_highest,
            d_lowest,
        )
        needs = Needs(need_queries, need_candidates, need_scale)
        return backends.gradients(batch, backend, saved, d_tables, needs)


def _multi_level_nce(
    queries: Tensor,
    candidates: Tensor,
    scale: Tensor,
    level_data: Sequence[Tensor],
    level_kind: str,
    max_level: int,
    normalize: bool,
    backend: str,
    workspace_mb: float,
    level_weights: Tensor,
    positives: str,
    negatives: str,
    full: bool,
    need_queries: bool,
    need_candidates: bool,
    need_scale: bool,
) -> _Tensors:
    with _plain(queries):
        batch = _batch(
            queries, candidates, scale, level_data, level_kind, max_level, normalize, workspace_mb
        )
        needs = Needs(need_queries, need_candidates, need_scale)
        losses, tables, gradients = backends.multi_level_nce(
            batch, backend, level_weights, positives, negatives, full, needs
        )
        return losses, *_flat(tables), *gradients


def _fake_tables(queries: Tensor, max_level: int, full: bool) -> _Tensors:
    dtype = accumulation_dtype(queries.dtype)
    shape = (queries.shape[0], max_level + 1)
    floats = [queries.new_empty(shape, dtype=dtype) for _ in range(5)]
    integers = [queries.new_empty(shape, dtype=torch.int64) for _ in range(3)]
    if not full:
        floats[1:] = [queries.new_empty(0, dtype=dtype) for _ in range(4)]
        integers[1:] = [queries.new_empty(0, dtype=dtype) for _ in range(2)]
    lse, neg_lse, total, highest, lowest = floats
    count, highest_at, lowest_at = integers
    return lse, neg_lse, total, count, highest, lowest, highest_at, lowest_at


def _fake_gradients(
    queries: Tensor, candidates: Tensor, need_queries: bool, need_candidates: bool
) -> _Tensors:
    dtype = accumulation_dtype(queries.dtype)
    return (
        queries.new_empty(queries.shape if need_queries else (0,), dtype=dtype),
        candidates.new_empty(candidates.shape if need_candidates else (0,), dtype=dtype),
        queries.new_empty((), dtype=dtype),
    )


def _fake_level_tables(queries: Tensor, *args: Any) -> _Tensors:
    max_level, full = args[4], args[8]
    return _fake_tables(queries, max_level, full)


def _fake_level_tables_bwd(queries: Tensor, candidates: Tensor, *args: Any) -> _Tensors:
    need_queries, need_candidates, _ = args[-3:]
    return _fake_gradients(queries, candidates, need_queries, need_candidates)


def _fake_multi_level_nce(queries: Tensor, candidates: Tensor, *args: Any) -> _Tensors:
    max_level, full, need_queries, need_candidates = args[3], args[10], args[11], args[12]
    losses = queries.new_empty(queries.shape[0], dtype=accumulation_dtype(queries.dtype))
    return (
        losses,
        *_fake_tables(queries, max_level, full),
        *_fake_gradients(queries, candidates, need_queries, need_candidates),
    )


for _name, _implementation, _fake in (
    ("level_tables", _level_tables, _fake_level_tables),
    ("level_tables_bwd", _level_tables_bwd, _fake_level_tables_bwd),
    ("multi_level_nce", _multi_level_nce, _fake_multi_level_nce),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"grainrank::{_name}", _fake, lib=_library)

_level_tables_op = torch.ops.grainrank.level_tables.default
_level_tables_bwd_op = torch.ops.grainrank.level_tables_bwd.default
_multi_level_nce_op = torch.ops.grainrank.multi_level_nce.default


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
        tables: _Tensors = _level_tables_op(queries, candidates, scale, level_data, *options, full)
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
        d_queries, d_candidates, d_scale = _level_tables_bwd_op(
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
        losses, *rest = _multi_level_nce_op(
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
        losses, *rest = _multi_level_nce_op(
            queries, candidates, scale, levels.tensors, *options, level_weights, *head,
            False, False, False,
        )  # fmt: skip
        loss, tables = losses.sum(), rest[:8]
    return loss, TableSet(*tables)
