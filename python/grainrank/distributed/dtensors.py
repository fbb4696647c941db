"""DTensor arguments: sharded on the batch, or replicated.

A DTensor has the gradient of one loss that all ranks compute together, where a plain tensor has
that of the sum over the ranks (DDP divides it by W afterwards).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..levels import LevelSource

#: Arguments with one row for each item; all others have the same value on every rank.
_BATCH = ("queries", "candidates", "guide_queries", "guide_candidates", "memory")


def is_dtensor(value: Any) -> bool:
    """Whether an argument is a DTensor, or has one. Without importing them."""
    if "torch.distributed.tensor" not in sys.modules:
        return False
    from torch.distributed.tensor import DTensor

    if isinstance(value, LevelSource):
        return any(map(is_dtensor, value.tensors))
    return isinstance(value, DTensor)


class _OneLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, world: int) -> Tensor:
        ctx.world = world
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None]:
        return d / ctx.world, None


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
    mesh, group = _mesh_and_group(given)
    local = {name: _local(name, value, mesh) for name, value in given.items()}
    return (), local | {"group": group}


def _mesh_and_group(given: dict[str, Any]) -> tuple[Any, Any]:
    """The mesh dimension that the batch is spread over, as a number, and its group."""
    queries = given["queries"]
    mesh = queries.device_mesh
    dims = {
        i
        for name in _BATCH
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
    return (mesh, dim), own


def _local(name: str, value: Any, where: Any) -> Any:
    if isinstance(value, LevelSource):

        def part(x: Tensor) -> Tensor:
            return _rows(name, x, where) if is_dtensor(x) else x

        def columns(source: LevelSource) -> LevelSource:
            return source.with_columns(part, lambda matrix: matrix)

        return columns(columns(value.transposed()).transposed())
    if not is_dtensor(value):
        return value
    if name in _BATCH:
        return _rows(name, value, where)
    if not all(placement.is_replicate() for placement in value.placements):
        raise ValueError(
            f"{name} must be replicated, got placements {tuple(value.placements)}; redistribute it"
        )
    return value.to_local()


def _rows(name: str, x: Any, where: Any) -> Tensor:
    """This rank's rows. Of a replicated DTensor every rank takes a part."""
    from torch.distributed.tensor import Replicate, Shard

    mesh, dim = where
    if x.device_mesh != mesh:
        raise ValueError(f"{name} must be on the mesh of queries, {mesh}, got {x.device_mesh}")
    target = [Shard(0) if i == dim else Replicate() for i in range(mesh.ndim)]
    for i, placement in enumerate(x.placements):
        if not (placement.is_replicate() or (i == dim and placement.is_shard(0))):
            raise ValueError(
                f"{name} must be sharded on the batch, Shard(0), or replicated, got {placement} "
                f"along dimension {i} of the mesh; redistribute it"
            )
    local = x.redistribute(mesh, target).to_local()
    world = mesh.size(dim)
    return _OneLoss.apply(local, world) if local.requires_grad else local  # type: ignore[no-any-return,no-untyped-call]
