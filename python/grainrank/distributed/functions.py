"""Autograd around the distributed passes.

The gradient of an input is that of the sum over the ranks of what each does with its results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..batch import Batch
from ..ops import plain
from ..returned import constants_of, returned, scaled
from ..table_sets import COLUMN_TABLES, Needs, TableGradientSet, TableSet
from . import passes
from .columns import Gathered, columns_of

_Tensors = tuple[Tensor | None, ...]
_ROWS = len(TableSet._fields)


def _differentiable(batch: Batch) -> _Tensors:
    given = batch.queries, batch.candidates, batch.scale, batch.factors
    if torch.is_grad_enabled():
        return given
    # A function asks whether a gradient is needed without looking at the mode.
    return tuple(None if x is None else x.detach() for x in given)


def _with(batch: Batch, inputs: Sequence[Any]) -> Batch:
    queries, candidates, scale, factors = inputs
    return batch._replace(queries=queries, candidates=candidates, scale=scale, factors=factors)


def _detached(batch: Batch) -> Batch:
    """For the context, which saves the inputs themselves."""
    with torch.no_grad():
        return _with(batch, _differentiable(batch))


class _LevelTables(torch.autograd.Function):
    """The tables; the backward meets the columns again, which `Gathered` keeps."""

    @staticmethod
    def forward(
        ctx: Any, batch: Batch, backend: str, full: bool, columns: bool, softplus: str, *inputs: Any
    ) -> _Tensors:
        batch = _detached(batch)
        with plain(batch.queries):
            given = columns_of(batch)
            rows, of_columns = passes.tables(given, batch, backend, full, columns, softplus)
        nothing = (None,) * len(COLUMN_TABLES)
        results = (*rows, *(nothing if of_columns is None else of_columns[: len(COLUMN_TABLES)]))
        ctx.save_for_backward(*inputs, *results)
        ctx.given, ctx.batch, ctx.backend, ctx.softplus = given, batch, backend, softplus
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*constants_of(results))
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_tables: Tensor | None) -> tuple[Any, ...]:
        inputs, results = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        needs = Needs(*ctx.needs_input_grad[5:])

        def part(first: int, names: Sequence[str]) -> tuple[TableSet, TableGradientSet] | None:
            tables = dict(zip(names, results[first:], strict=False))
            d = dict(zip(names, d_tables[first:], strict=False))
            if tables["lse"] is None or all(x is None for x in d.values()):
                return None
            given = {name: d.get(name) for name in TableGradientSet._fields}
            return TableSet(**tables), TableGradientSet(**given)

        of_rows = part(0, TableSet._fields)
        if of_rows is None:
            rows = TableSet(*results[:_ROWS])
            of_rows = rows, TableGradientSet()
        columns, d_columns = part(_ROWS, COLUMN_TABLES) or (None, None)
        batch = _with(ctx.batch, inputs)
        with plain(batch.queries):
            gradients = passes.gradients(
                ctx.given, batch, ctx.backend, *of_rows, columns, d_columns, ctx.softplus, needs
            )
        return (None,) * 5 + tuple(returned(gradients, inputs, needs))


class _MultiLevelNCE(torch.autograd.Function):
    """The sum of the own rows' losses; the candidates' gradient travels until the backward."""

    @staticmethod
    def forward(ctx: Any, batch: Batch, backend: str, head: Any, *inputs: Any) -> _Tensors:
        needs = Needs(*ctx.needs_input_grad[3:])
        batch, (weights, positives, negatives) = _detached(batch), head
        with plain(batch.queries):
            losses, tables, d, pending = passes.multi_level_nce(
                Gathered(batch), batch, backend, weights, positives, negatives, needs
            )
        ctx.save_for_backward(d.queries, d.scale, d.factors)
        ctx.pending, ctx.needs = pending, needs
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(tables.lse, tables.total, tables.count)
        return losses.sum(), tables.lse, tables.total, tables.count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        d_queries, d_scale, d_factors = ctx.saved_tensors
        d_candidates = None if ctx.pending is None else ctx.pending.finish()
        if d_loss is None:
            return (None,) * 7
        gradients = d_queries, d_candidates, d_scale, d_factors
        return None, None, None, *scaled(gradients, d_loss, ctx.dtypes, ctx.needs)


class _SigmoidLoss(torch.autograd.Function):
    """The sum of the own rows' losses."""

    @staticmethod
    def forward(
        ctx: Any, batch: Batch, backend: str, weights: Tensor, bias: Tensor, *inputs: Any
    ) -> Tensor:
        needs = Needs(*ctx.needs_input_grad[4:])
        batch = _detached(batch)
        with plain(batch.queries):
            losses, d, d_bias = passes.sigmoid(
                columns_of(batch), batch, backend, bias.detach(), weights, needs
            )
        ctx.save_for_backward(d_bias, *d)
        ctx.needs = (ctx.needs_input_grad[3], *needs)
        ctx.dtypes = [bias.dtype, *(None if x is None else x.dtype for x in inputs)]
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Any, ...]:
        return None, None, None, *scaled(ctx.saved_tensors, d_loss, ctx.dtypes, ctx.needs)


def level_tables(
    batch: Batch, backend: str, full: bool, columns: bool, softplus: str
) -> tuple[TableSet, TableSet | None]:
    """`autograd.level_tables` over the ranks of the batch."""
    results = _LevelTables.apply(  # type: ignore[no-untyped-call]
        batch, backend, full, columns, softplus, *_differentiable(batch)
    )
    return TableSet(*results[:_ROWS]), TableSet(*results[_ROWS:]) if columns else None


def multi_level_nce_sum(
    batch: Batch, backend: str, level_weights: Tensor, positives: str, negatives: str
) -> tuple[Tensor, TableSet]:
    """`autograd.multi_level_nce_sum` over the ranks of the batch, for `transport="gather"`."""
    loss, lse, total, count = _MultiLevelNCE.apply(  # type: ignore[no-untyped-call]
        batch, backend, (level_weights, positives, negatives), *_differentiable(batch)
    )
    return loss, TableSet(lse, None, total, count, None, None, None, None)


def sigmoid_loss_sum(batch: Batch, backend: str, bias: Tensor, level_weights: Tensor) -> Tensor:
    """`autograd.sigmoid_loss_sum` over the ranks of the batch."""
    bias = bias if torch.is_grad_enabled() else bias.detach()
    return _SigmoidLoss.apply(  # type: ignore[no-any-return,no-untyped-call]
        batch, backend, level_weights, bias, *_differentiable(batch)
    )
