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
from .batch import Batch, Product
from .levels import from_parts
from .row_blocks import kept_shape
from .table_sets import COLUMN_TABLES, Gradients, Needs, TableGradientSet, TableSet

_library = torch.library.Library("grainrank", "FRAGMENT")

_BATCH = (
    "Tensor queries, Tensor candidates, Tensor scale, Tensor? factors, Tensor? memory, "
    "Tensor[] level_data, str level_kind, bool normalize, int[] dims, "
    "float? circle, float workspace_mb, str product, float skip_below, str backend"
)


def _results(prefix: str, names: Sequence[str]) -> str:
    return ", ".join(f"Tensor {prefix}{name}" for name in names)


_ROWS = _results("", TableSet._fields)
_COLUMNS = _results("column_", COLUMN_TABLES)
_GRADIENTS = _results("d_", Gradients._fields)

_library.define(
    f"level_tables({_BATCH}, bool full, bool columns, str softplus, bool keep) "
    f"-> ({_ROWS}, {_COLUMNS}, Tensor kept)"
)
_library.define(
    f"level_tables_bwd({_BATCH}, Tensor[] rows, Tensor?[] d_rows, Tensor[] columns, "
    f"Tensor?[] d_columns, str softplus, Tensor(a!) kept, bool[] needs) -> ({_GRADIENTS})"
)
_library.define(
    f"multi_level_nce({_BATCH}, Tensor level_weights, str positives, str negatives, bool[] needs) "
    f"-> (Tensor losses, Tensor lse, Tensor total, Tensor count, {_GRADIENTS})"
)
_library.define(
    f"sigmoid_loss({_BATCH}, Tensor bias, Tensor level_weights, bool[] needs) "
    f"-> (Tensor losses, {_GRADIENTS}, Tensor d_bias)"
)

_Tensors = tuple[Tensor, ...]
_INPUTS = 14  # of _BATCH


def arguments(batch: Batch, backend: str) -> tuple[Any, ...]:
    """The batch as the operators take it."""
    levels = batch.levels
    return (
        batch.queries, batch.candidates, batch.scale, batch.factors, batch.memory,
        list(levels.tensors), levels.kind, batch.normalize, list(batch.dims),
        batch.circle, batch.workspace_mb, batch.product, batch.skip_below, backend,
    )  # fmt: skip


def _batch(
    queries: Tensor,
    candidates: Tensor,
    scale: Tensor,
    factors: Tensor | None,
    memory: Tensor | None,
    level_data: Sequence[Tensor],
    level_kind: str,
    normalize: bool,
    dims: Sequence[int],
    circle: float | None,
    workspace_mb: float,
    product: Product,
    skip_below: float,
    backend: str,
) -> tuple[Batch, str]:
    levels = from_parts(level_kind, level_data)
    return Batch(
        queries, candidates, scale, levels, normalize, factors, memory, tuple(dims), circle,
        workspace_mb, product, skip_below=skip_below,
    ), backend  # fmt: skip


@contextlib.contextmanager
def plain(queries: Tensor) -> Any:
    """Neither autograd nor autocast inside an operator: its dtypes are its own. And the device of
    the queries is the current one, on which Triton launches.
    """
    device = torch.cuda.device(queries.device) if queries.is_cuda else contextlib.nullcontext()
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False), device:
        yield


def _flat(like: Tensor, tables: Sequence[Tensor | None]) -> _Tensors:
    return tuple(like.new_empty(0) if table is None else table for table in tables)


def _given(tables: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if table is None or table.numel() == 0 else table for table in tables]


def _level_tables(*args: Any) -> _Tensors:
    with plain(args[0]):
        batch, backend = _batch(*args[:_INPUTS])
        rows, columns, kept = backends.tables(batch, backend, *args[_INPUTS:])
        of_columns = (None,) * len(COLUMN_TABLES) if columns is None else columns[:-2]
        return _flat(batch.scale, (*rows, *of_columns, kept))


def _level_tables_bwd(*args: Any) -> _Tensors:
    with plain(args[0]):
        batch, backend = _batch(*args[:_INPUTS])
        rows, d_rows, columns, d_columns, softplus, kept, needs = args[_INPUTS:]
        by_column = any(d is not None for d in _given(d_columns))
        return backends.gradients(
            batch,
            backend,
            TableSet(*_given(rows)),  # type: ignore[arg-type]
            TableGradientSet(*_given(d_rows)),
            TableSet(*_given(columns)) if by_column else None,  # type: ignore[arg-type]
            TableGradientSet(*_given(d_columns)) if by_column else None,
            softplus,
            Needs(*needs),
            kept if kept.numel() > 0 else None,
        )


def _multi_level_nce(*args: Any) -> _Tensors:
    with plain(args[0]):
        batch, backend = _batch(*args[:_INPUTS])
        weights, positives, negatives, needs = args[_INPUTS:]
        losses, t, d = backends.multi_level_nce(
            batch, backend, weights, positives, negatives, Needs(*needs)
        )
        return losses, t.lse, t.total, t.count, *d


def _sigmoid_loss(*args: Any) -> _Tensors:
    with plain(args[0]):
        batch, backend = _batch(*args[:_INPUTS])
        bias, level_weights, needs = args[_INPUTS:]
        losses, d, d_bias = backends.sigmoid(batch, backend, bias, level_weights, Needs(*needs))
        return losses, *d, d_bias


def _fake_tables(batch: Batch, rows: int, names: Sequence[str], wanted: Sequence[str]) -> _Tensors:
    shape = (batch.views, rows, batch.levels.max_level + 1)

    def fake(name: str) -> Tensor:
        integers = name == "count" or name.endswith("_at")
        dtype = torch.int64 if integers and name in wanted else batch.dtype
        return batch.queries.new_empty(shape if name in wanted else (0,), dtype=dtype)

    return tuple(fake(name) for name in names)


def _wanted(full: bool, softplus: str = "") -> Sequence[str]:
    tables = COLUMN_TABLES if full else ("lse", "total", "count")
    return (*tables, "softplus", "slope") if softplus else tables


def _fake_gradients(batch: Batch, needs: Needs) -> _Tensors:
    def fake(like: Tensor | None, needed: bool) -> Tensor:
        shape = like.shape if needed and like is not None else (0,)
        return batch.queries.new_empty(shape, dtype=batch.dtype)

    return (
        fake(batch.queries, needs.queries),
        fake(batch.candidates, needs.candidates),
        fake(batch.scale, True),
        fake(batch.factors, needs.factors),
    )


def _fake_level_tables(*args: Any) -> _Tensors:
    batch, backend = _batch(*args[:_INPUTS])
    full, columns, softplus, keep = args[_INPUTS:]
    kept: tuple[int, ...] = (0,)
    if keep and backends.stores_similarities(batch, backend):
        kept = kept_shape(batch)
    return (
        *_fake_tables(batch, batch.queries.shape[0], TableSet._fields, _wanted(full, softplus)),
        *_fake_tables(
            batch, batch.candidates.shape[0], COLUMN_TABLES, _wanted(full) if columns else ()
        ),
        batch.queries.new_empty(kept, dtype=batch.dtype),
    )


def _fake_level_tables_bwd(*args: Any) -> _Tensors:
    batch, _ = _batch(*args[:_INPUTS])
    return _fake_gradients(batch, Needs(*args[-1]))


def _fake_multi_level_nce(*args: Any) -> _Tensors:
    batch, _ = _batch(*args[:_INPUTS])
    n = batch.queries.shape[0]
    return (
        batch.queries.new_empty(n, dtype=batch.dtype),
        *_fake_tables(batch, n, ("lse", "total", "count"), _wanted(False)),
        *_fake_gradients(batch, Needs(*args[-1])),
    )


def _fake_sigmoid_loss(*args: Any) -> _Tensors:
    batch, _ = _batch(*args[:_INPUTS])
    return (
        batch.queries.new_empty(batch.queries.shape[0], dtype=batch.dtype),
        *_fake_gradients(batch, Needs(*args[-1])),
        batch.queries.new_empty((), dtype=batch.dtype),
    )


for _name, _implementation, _fake in (
    ("level_tables", _level_tables, _fake_level_tables),
    ("level_tables_bwd", _level_tables_bwd, _fake_level_tables_bwd),
    ("multi_level_nce", _multi_level_nce, _fake_multi_level_nce),
    ("sigmoid_loss", _sigmoid_loss, _fake_sigmoid_loss),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"grainrank::{_name}", _fake, lib=_library)

level_tables = torch.ops.grainrank.level_tables.default
level_tables_bwd = torch.ops.grainrank.level_tables_bwd.default
multi_level_nce = torch.ops.grainrank.multi_level_nce.default
sigmoid_loss = torch.ops.grainrank.sigmoid_loss.default
