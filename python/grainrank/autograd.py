"""Autograd around the operators: what is saved, and the hand-written backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import ops
from .batch import Batch
from .distributed import functions as distributed
from .returned import constants_of, last_backward, returned, scaled, waiting
from .table_sets import COLUMN_TABLES, Needs, TableGradientSet, TableSet

_Tensors = tuple[Tensor, ...]
_OPTIONAL = (3, 4)  # factors and memory, of the inputs
_DIFFERENTIABLE = tuple(TableSet._fields.index(name) for name in TableGradientSet._fields)
_OF_COLUMNS = len(TableSet._fields)


def _inputs(batch: Batch, backend: str) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Tensors (or None) in a row, as autograd wants them, and the rest of the arguments."""
    arguments = ops.arguments(batch, backend)
    tensors: list[Any] = []
    for x in (*arguments[:5], *arguments[5]):
        # Dynamo does not trace a Function that gets one tensor twice.
        twice = x is not None and any(x is other for other in tensors)
        tensors.append(x.view_as(x) if twice else x)
    return tuple(tensors), arguments[6:]


def _arguments(tensors: Sequence[Tensor | None], options: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*tensors[:5], list(tensors[5:]), *options)


def _needs(ctx: Any, first: int) -> list[bool]:
    return list(Needs(*ctx.needs_input_grad[first : first + 4]))


class _LevelTables(torch.autograd.Function):
    """The tables; the backward sweeps again."""

    @staticmethod
    def forward(
        ctx: Any,
        options: tuple[Any, ...],
        full: bool,
        columns: bool,
        softplus: str,
        *tensors: Tensor | None,
    ) -> _Tensors:
        keep = any(_needs(ctx, 4))
        *tables, kept = ops.level_tables(
            *_arguments(tensors, options), full, columns, softplus, keep
        )
        ctx.save_for_backward(*tensors, *tables, kept)
        ctx.options, ctx.columns, ctx.softplus = options, columns, softplus
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*constants_of(tables))
        return tuple(tables)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_tables: Tensor | None) -> tuple[Any, ...]:
        *saved, kept = ctx.saved_tensors
        kept = kept if last_backward(d_tables) else kept.clone()  # it is overwritten
        split = len(saved) - len(d_tables)
        tensors, tables = saved[:split], saved[split:]

        def part(first: int, names: int) -> tuple[list[Tensor], list[Tensor | None]]:
            return list(tables[first : first + names]), [
                d_tables[first + i] if i < names else None for i in _DIFFERENTIABLE
            ]

        rows, d_rows = part(0, _OF_COLUMNS)
        columns, d_columns = part(_OF_COLUMNS, len(COLUMN_TABLES)) if ctx.columns else ([], [])
        needs = _needs(ctx, 4)
        gradients = ops.level_tables_bwd(
            *_arguments(tensors, ctx.options), rows, d_rows, columns, d_columns, ctx.softplus, kept,
            needs,
        )  # fmt: skip
        none = (None,) * (len(tensors) - 4)
        return (None, None, None, None, *returned(gradients, tensors, needs), *none)


class _MultiLevelNCE(torch.autograd.Function):
    """The sum of the losses; its gradients are ready when the forward ends, and are saved."""

    @staticmethod
    def forward(
        ctx: Any,
        options: tuple[Any, ...],
        head: tuple[Any, ...],
        *tensors: Tensor | None,
    ) -> _Tensors:
        needs = _needs(ctx, 2)
        losses, lse, total, count, *gradients = ops.multi_level_nce(
            *_arguments(tensors, options), *head, needs
        )
        ctx.dtypes = [None if x is None else x.dtype for x in tensors[:4]]
        ctx.save_for_backward(*waiting(gradients, ctx.dtypes))
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(lse, total, count)
        return losses.sum(), lse, total, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad
        if d_loss is None:
            return (None,) * len(needs)
        return (
            None,
            None,
            *scaled(ctx.saved_tensors, d_loss, ctx.dtypes, needs[2:]),
            *(None for _ in needs[6:]),
        )


class _SigmoidLoss(torch.autograd.Function):
    """The sum of the sigmoid losses; its gradients are ready when the forward ends."""

    @staticmethod
    def forward(
        ctx: Any,
        options: tuple[Any, ...],
        level_weights: Tensor,
        bias: Tensor,
        *tensors: Tensor | None,
    ) -> Tensor:
        losses, *gradients = ops.sigmoid_loss(
            *_arguments(tensors, options), bias, level_weights, _needs(ctx, 3)
        )
        ctx.dtypes = [bias.dtype, *(None if x is None else x.dtype for x in tensors[:4])]
        *of_inputs, d_bias = gradients
        ctx.save_for_backward(*waiting(of_inputs, ctx.dtypes[1:]), d_bias)
        loss: Tensor = losses.sum()
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad
        *gradients, d_bias = ctx.saved_tensors
        return (
            None,
            None,
            *scaled((d_bias, *gradients), d_loss, ctx.dtypes, needs[2:]),
            *(None for _ in needs[7:]),
        )


def _table_set(tables: Sequence[Tensor]) -> TableSet:
    return TableSet(*(table if table.numel() > 0 else None for table in tables))  # type: ignore[arg-type]


def level_tables(
    batch: Batch, backend: str, full: bool = True, columns: bool = False, softplus: str = ""
) -> tuple[TableSet, TableSet | None]:
    """The differentiable tables of the rows and, if asked for, of the columns."""
    if batch.shards is not None:
        return distributed.level_tables(batch, backend, full, columns, softplus)
    tensors, options = _inputs(batch, backend)
    tables = _LevelTables.apply(  # type: ignore[no-untyped-call]
        options, full, columns, softplus, *tensors
    )
    rows = _table_set(tables[:_OF_COLUMNS])
    return rows, _table_set(tables[_OF_COLUMNS:]) if columns else None


def multi_level_nce_sum(
    batch: Batch, backend: str, level_weights: Tensor, positives: str, negatives: str
) -> tuple[Tensor, TableSet]:
    """The sum of the losses, differentiable, and the light tables, detached."""
    if batch.shards is not None:
        return distributed.multi_level_nce_sum(batch, backend, level_weights, positives, negatives)
    tensors, options = _inputs(batch, backend)
    head = level_weights, positives, negatives
    if torch.is_grad_enabled():
        loss, *tables = _MultiLevelNCE.apply(  # type: ignore[no-untyped-call]
            options, head, *tensors
        )
    else:
        losses, *tables = ops.multi_level_nce(*ops.arguments(batch, backend), *head, [False] * 4)
        loss = losses.sum()
    lse, total, count = tables[:3]
    return loss, TableSet(lse, None, total, count, None, None, None, None)


def sigmoid_loss_sum(batch: Batch, backend: str, bias: Tensor, level_weights: Tensor) -> Tensor:
    """The sum of the sigmoid losses, differentiable."""
    if batch.shards is not None:
        return distributed.sigmoid_loss_sum(batch, backend, bias, level_weights)
    tensors, options = _inputs(batch, backend)
    if torch.is_grad_enabled():
        return _SigmoidLoss.apply(  # type: ignore[no-any-return,no-untyped-call]
            options, level_weights, bias, *tensors
        )
    losses = ops.sigmoid_loss(*ops.arguments(batch, backend), bias, level_weights, [False] * 4)[0]
    return losses.sum()  # type: ignore[no-any-return]
