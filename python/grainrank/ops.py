"""The operators: `torch.library` schemas, implementations and fakes.

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

from . import backends
from .levels import from_parts
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

level_tables = torch.ops.grainrank.level_tables.default
level_tables_bwd = torch.ops.grainrank.level_tables_bwd.default
multi_level_nce = torch.ops.grainrank.multi_level_nce.default
