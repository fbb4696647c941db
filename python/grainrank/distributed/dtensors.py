"""DTensor arguments: sharded on the batch, or replicated.

A DTensor has the gradient of one loss that all ranks compute together, where a plain tensor has
that of the sum over the ranks (DDP divides it by W afterwards). Losses of single rows and tables
come as plain tensors of the own rows; the gradient is that of the sum over the ranks, too.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..levels import LevelSource

#: Arguments with one row for each item; all others have the same value on every rank.
BATCH = ("queries", "candidates", "guide_queries", "guide_candidates", "memory")


def is_dtensor(value: Any) -> bool:
    """Whether an argument is a DTensor, or has one. Without importing them."""
    if "torch.distributed.tensor" not in sys.modules:
        return False
    from torch.distributed.tensor import DTensor

    if isinstance(value, LevelSource):
        return any(map(is_dtensor, value.tensors))
    return isinstance(value, DTensor)


class _Scaled(torch.autograd.Function):
    """The tensor, with another gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None]:
        return d * ctx.factor, None


def _scaled(x: Tensor, factor: float) -> Tensor:
    if factor == 1 or not x.requires_grad:
        return x
    return _Scaled.apply(x, factor)  # type: ignore[no-any-return,no-untyped-call]


def to_local(
    function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call on this rank's parts, with the group of the mesh; without DTensors as it came.

    Raises:
        ValueError: a DTensor that is sharded in another way, is on another mesh, or is beside
            embeddings that are none.
    """
    if not any(map(is_dtensor, (*args, *options.values()))):
        return args, options
    names = list(inspect.signature(function).parameters)
    given = dict(zip(names, args, strict=False)) | options
    for name in ("queries", "candidates"):
        if not is_dtensor(given.get(name)):
            raise ValueError(
                f"{name} must be a DTensor, like other arguments of this call, got a plain tensor; "
                f"pass DTensor.from_local(...), or to_local() of the others"
            )
    # Tables, and losses of single rows, are plain tensors of the own rows: not one loss.
    one_loss = given.get("reduction") != "none" and function.__name__ != "level_statistics"
    where, group = _where(given, one_loss)
    local = {name: _local(name, value, where) for name, value in given.items()}
    return (), local | {"group": group}


class _Where(NamedTuple):
    """The mesh, the dimension that the batch is spread over, and factors of the gradients: plain
    embeddings get W times that of one loss, plain numbers the mean of the ranks' parts.
    """

    mesh: Any
    dim: int
    of_rows: float
    of_numbers: float


def _where(given: dict[str, Any], one_loss: bool) -> tuple[_Where, Any]:
    """And the group."""
    queries = given["queries"]
    mesh = queries.device_mesh
    dims = {
        i
        for name in BATCH
        if is_dtensor(given.get(name))
        for i, placement in enumerate(given[name].placements)
        if placement.is_shard()
    }
    if mesh.ndim == 1:
        dims = {0}
    if len(dims) != 1:
        raise ValueError(
            f"queries and candidates must be sharded over one dimension of their mesh, or "
            f"replicated on a mesh with one, got placements {tuple(queries.placements)} and "
            f"{tuple(given['candidates'].placements)}; redistribute them"
        )
    (dim,) = dims
    own = mesh.get_group(dim)
    other = given.get("group")
    if other is not None:
        from .groups import resolve_group

        if resolve_group(other) not in (own, None):
            raise ValueError("group must be that of the mesh of queries, got another; leave it out")
    world = mesh.size(dim)
    return _Where(mesh, dim, *((1 / world, 1) if one_loss else (1, world))), own


def _local(name: str, value: Any, where: _Where) -> Any:
    if isinstance(value, LevelSource):

        def part(x: Tensor) -> Tensor:
            return _rows(name, x, where) if is_dtensor(x) else x

        def columns(source: LevelSource) -> LevelSource:
            return source.with_columns(part, lambda matrix: matrix)

        return columns(columns(value.transposed()).transposed())
    if not is_dtensor(value):
        return value
    if name in BATCH:
        return _rows(name, value, where)
    if not all(placement.is_replicate() for placement in value.placements):
        raise ValueError(
            f"{name} must be replicated, got placements {tuple(value.placements)}; redistribute it"
        )
    return _scaled(value.to_local(), where.of_numbers)


def _rows(name: str, x: Any, where: _Where) -> Tensor:
    """This rank's rows. Of a replicated DTensor every rank takes a part."""
    from torch.distributed.tensor import Replicate, Shard

    mesh, dim = where.mesh, where.dim
    if x.device_mesh != mesh:
        raise ValueError(f"{name} must be on the mesh of queries, {mesh}, got {x.device_mesh}")
    target = [Shard(0) if i == dim else Replicate() for i in range(mesh.ndim)]
    for i, placement in enumerate(x.placements):
        if not (placement.is_replicate() or (i == dim and placement.is_shard(0))):
            raise ValueError(
                f"{name} must be sharded on the batch, Shard(0), or replicated, got {placement} "
                f"along dimension {i} of the mesh; redistribute it"
            )
    return _scaled(x.redistribute(mesh, target).to_local(), where.of_rows)
