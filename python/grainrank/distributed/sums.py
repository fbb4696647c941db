"""Numbers and tables of all ranks, differentiable.

The gradient is that of the sum over the ranks of what each does with the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..validation import accumulation_dtype
from . import collectives
from .shards import Shards

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ..statistics import LevelStatistics


def _summed(x: Tensor, group: ProcessGroup) -> Tensor:
    """In rank order: the same bits on every rank."""
    return collectives.gather_equal(x, group).sum(dim=0)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _summed(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None]:
        return _summed(d, ctx.group), None


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None]:
        parts = collectives.gather_equal(d.double(), ctx.group)
        return parts.mean(dim=0).to(d.dtype), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, sizes: tuple[int, ...], shards: Shards, everyone: Tensor | None
    ) -> Tensor:
        ctx.sizes, ctx.shards, ctx.dtype = sizes, shards, x.dtype
        if everyone is not None:
            return everyone.view_as(everyone)
        return collectives.gather(x, sizes, shards.rank, shards.group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None, None, None]:
        shards = ctx.shards
        wide = d.to(accumulation_dtype(d.dtype))
        scatter = collectives.Scatter(ctx.sizes, wide, shards.rank, shards.group)
        scatter.sums.copy_(wide)
        scatter.start()
        return scatter.wait().to(ctx.dtype), None, None, None


def over_ranks(x: Tensor, shards: Shards | None) -> Tensor:
    """The sum over the ranks, float64, the same bits on each; without ranks x itself."""
    if shards is None:
        return x
    return _Sum.apply(x.double(), shards.group)  # type: ignore[no-any-return,no-untyped-call]


def together(tensors: Sequence[Tensor], shards: Shards) -> list[Tensor]:
    """The sums over the ranks of some tensors, each in its dtype, by one collective."""
    parts = [x.reshape(-1).double() for x in tensors]
    summed = _summed(torch.cat(parts), shards.group)
    return [
        part.reshape(x.shape).to(x.dtype)
        for x, part in zip(tensors, summed.split([len(p) for p in parts]), strict=True)
    ]


def replicated(x: Tensor, shards: Shards | None) -> Tensor:
    """A number that every rank has, a temperature, say.

    Its gradient is the mean of the ranks' parts: what DDP would make of them, and with a global
    loss the whole gradient on every rank.
    """
    if shards is None or not x.requires_grad:
        return x
    return _Replicated.apply(x, shards.group)  # type: ignore[no-any-return,no-untyped-call]


def gathered_columns(x: Tensor, everyone: Tensor, shards: Shards) -> Tensor:
    """The candidates of all ranks, `everyone`, as differentiable in the own ones."""
    return _Gather.apply(  # type: ignore[no-any-return,no-untyped-call]
        x, shards.columns, shards, everyone
    )


def gathered_rows(t: LevelStatistics, shards: Shards) -> LevelStatistics:
    """The tables of the rows of all ranks."""
    floats = {n: x for n, x in t._asdict().items() if x is not None and x.is_floating_point()}
    whole = {n: x for n, x in t._asdict().items() if x is not None and n not in floats}
    packed = torch.stack(list(floats.values()), dim=1)  # [N, tables, L + 1]
    rows = _Gather.apply(packed, shards.rows, shards, None)  # type: ignore[no-untyped-call]
    numbers = torch.stack(list(whole.values()), dim=1)
    everyone = collectives.gather(numbers, shards.rows, shards.rank, shards.group)
    found = dict(zip(floats, rows.unbind(dim=1), strict=True))
    found |= dict(zip(whole, everyone.unbind(dim=1), strict=True))
    return type(t)(*(found.get(name) for name in t._fields))  # type: ignore[arg-type]
