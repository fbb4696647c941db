"""Symmetric InfoNCE over ranks under the conventions of public code, in plain PyTorch.

The letters are those of docs/distributed.md. Every rank has as many rows as the others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

Loss = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
Backward = Literal["sum, then own slice", "own slice, then sum", "own slice"]


def one_process(queries: Tensor, candidates: Tensor, scale: Tensor) -> Tensor:
    """The whole batch: the truth."""
    return _of_rows(normalize(queries), normalize(candidates), scale)


def _of_rows(q: Tensor, c: Tensor, scale: Tensor) -> Tensor:
    logits = scale * q @ c.T  # [N, N]
    target = torch.arange(len(q))
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def _of_own_rows(
    q: Tensor, c: Tensor, all_q: Tensor, all_c: Tensor, scale: Tensor, rank: int
) -> Tensor:
    target = torch.arange(len(q)) + rank * len(q)
    of_queries = cross_entropy(scale * q @ all_c.T, target)
    return (of_queries + cross_entropy(scale * c @ all_q.T, target)) / 2


def _blocks(x: Tensor, group: Any) -> list[Tensor]:
    """Without gradient."""
    blocks = [torch.zeros_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(blocks, x.detach().contiguous(), group=group)
    return blocks


def gather_constants(x: Tensor, group: Any) -> Tensor:
    return torch.cat(_blocks(x, group))


def gather_with_own(x: Tensor, group: Any) -> Tensor:
    """The own block is the tensor itself; the others have no gradient."""
    blocks = _blocks(x, group)
    blocks[dist.get_rank(group)] = x
    return torch.cat(blocks)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any, backward: Backward) -> Tensor:
        ctx.group, ctx.rows, ctx.kind = group, len(x), backward
        return torch.cat(_blocks(x, group))

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None, None]:
        d = d.clone()
        first = dist.get_rank(ctx.group) * ctx.rows
        if ctx.kind == "sum, then own slice":
            dist.all_reduce(d, group=ctx.group)
        own = d[first : first + ctx.rows].clone()
        if ctx.kind == "own slice, then sum":
            dist.all_reduce(own, group=ctx.group)
        return own, None, None


class _SummedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.clone()

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None]:
        d = d.clone()
        dist.all_reduce(d, group=ctx.group)
        return d, None


def convention(
    queries: Tensor,
    candidates: Tensor,
    scale: Tensor,
    group: Any,
    *,
    gather: Callable[[Tensor, Any], Tensor],
    rows: Literal["all", "own"],
    times_world: bool = False,
    summed_scale: bool = False,
) -> Tensor:
    q, c = normalize(queries), normalize(candidates)
    if summed_scale:
        scale = _SummedGradient.apply(scale, group)
    all_q, all_c = gather(q, group), gather(c, group)
    if rows == "all":
        loss = _of_rows(all_q, all_c, scale)
    else:
        loss = _of_own_rows(q, c, all_q, all_c, scale, dist.get_rank(group))
    return loss * dist.get_world_size(group) if times_world else loss


def _with_backward(kind: Backward) -> Callable[[Tensor, Any], Tensor]:
    def gather(x: Tensor, group: Any) -> Tensor:
        return _Gather.apply(x, group, kind)

    return gather


def _loss(gather: Callable[[Tensor, Any], Tensor], rows: str, **options: bool) -> Loss:
    return functools.partial(convention, gather=gather, rows=rows, **options)  # type: ignore[arg-type]


_GRAD = _with_backward("sum, then own slice")
_ADDED_UP = _with_backward("own slice, then sum")
_OWN_SLICE = _with_backward("own slice")

CONVENTIONS: dict[str, Loss] = {
    "A": _loss(gather_with_own, "all"),
    "B": _loss(gather_with_own, "all", times_world=True),
    "C": _loss(_GRAD, "own"),
    "E": _loss(_GRAD, "all"),
    "P": _loss(_GRAD, "own", times_world=True),
    "G": _loss(gather_constants, "own"),
    "I": _loss(_GRAD, "own", summed_scale=True),
    "J own rows": _loss(_ADDED_UP, "own"),
    "J all rows": _loss(_ADDED_UP, "all"),
    "K own rows": _loss(_OWN_SLICE, "own"),
    "K all rows": _loss(_OWN_SLICE, "all"),
}
# L is the correct hand-written gather, C and E one from a library: here they are the same function.
CONVENTIONS |= {"L own rows": CONVENTIONS["C"], "L all rows": CONVENTIONS["E"]}
