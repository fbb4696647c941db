"""What the autograd functions give back, on one process and over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .table_sets import COLUMN_TABLES, TableGradientSet, TableSet


def returned(
    gradients: Sequence[Tensor], like: Sequence[Tensor | None], needs: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of the first inputs, in their dtypes; None where not needed."""
    return [
        d.to(x.dtype) if need and x is not None else None
        for d, x, need in zip(gradients, like, needs, strict=False)
    ]


def waiting(gradients: Sequence[Tensor], dtypes: Sequence[torch.dtype | None]) -> list[Tensor]:
    """Gradients that are ready with the loss, as they wait for the one that comes.

    In the accumulation dtype: a float16 gradient before the loss scaler's factor would underflow.
    bfloat16 has the range of float32, and its gradients wait in half the memory.
    """
    return [
        d.to(dtype) if dtype == torch.bfloat16 else d
        for d, dtype in zip(gradients, dtypes, strict=False)
    ]


def _is_batch(d: Tensor) -> bool:
    of_grad = torch._C._functorch.is_legacy_batchedtensor(d)  # is_grads_batched=True
    return of_grad or torch._C._functorch.is_functorch_wrapped_tensor(d)


def last_backward(gradients: Sequence[Tensor | None]) -> bool:
    """Whether what was saved for this backward, to which these gradients came, serves no other one
    and may be overwritten.
    """
    # A compiled graph plans its memory itself; with a batch of gradients each reads what was saved.
    if torch.compiler.is_compiling() or any(d is not None and _is_batch(d) for d in gradients):
        return False
    return not torch._C._autograd._get_current_graph_task_keep_graph()


def scaled(
    gradients: Sequence[Any],
    d_loss: Tensor,
    dtypes: Sequence[torch.dtype | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients that were ready with the loss, times the one that came."""
    times = Tensor.mul_ if last_backward([d_loss]) else Tensor.mul
    return [
        times(d, d_loss).to(dtype) if need else None
        for d, dtype, need in zip(gradients, dtypes, needs, strict=False)
    ]


def constants_of(tables: Sequence[Tensor | None]) -> list[Tensor]:
    """Of the tables of rows and columns, in their order, those without a gradient."""
    names = (*TableSet._fields, *COLUMN_TABLES)
    return [
        table
        for table, name in zip(tables, names, strict=True)
        if table is not None and name not in TableGradientSet._fields
    ]
