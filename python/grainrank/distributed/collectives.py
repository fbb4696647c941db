"""The collectives that the losses use, for rows of any number on each rank.

Plain ones, without autograd; under one name whatever the version of torch calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from .shards import Arrival, span_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def _newest(new: str, old: str) -> Callable[..., Any]:
    """A collective by its newer name, where torch has it: the old one warns there."""
    function: Callable[..., Any] = getattr(dist, new, None) or getattr(dist, old)
    return function


def start_gather(
    x: Tensor, sizes: tuple[int, ...], rank: int, group: ProcessGroup
) -> tuple[Tensor, Arrival]:
    """Memory for the rows `[sizes[k], ..]` of all ranks k, and their arrival."""
    row = tuple(x.shape[1:])
    x = x.contiguous()
    out = padded = x.new_empty(sum(sizes), *row)
    even = len(set(sizes)) == 1
    longest = max(sizes)
    given = x
    if not even:
        padded = x.new_empty(len(sizes) * longest, *row)
        given = x.new_zeros(longest, *row)
        given[: len(x)] = x
    start = _newest("all_gather_single", "all_gather_into_tensor")
    work = start(padded, given, group=group, async_op=True)

    def finish() -> None:
        work.wait()
        if not even:
            for k, size in enumerate(sizes):
                out[span_of(sizes, range(k, k + 1))] = padded[k * longest : k * longest + size]

    return out, Arrival(span_of(sizes, range(rank, rank + 1)), x, finish)


def gather(x: Tensor, sizes: tuple[int, ...], rank: int, group: ProcessGroup) -> Tensor:
    """The rows of all ranks."""
    out, arrival = start_gather(x, sizes, rank, group)
    arrival.wait()
    return out


def gather_equal(x: Tensor, group: ProcessGroup) -> Tensor:
    """`[W, *x.shape]` of tensors that have the same shape everywhere."""
    world = dist.get_world_size(group)
    return gather(x[None], (1,) * world, dist.get_rank(group), group)


class Scatter:
    """Sums `[sum(sizes), ..]` of all ranks on their way to the rank whose rows they are."""

    def __init__(self, sizes: tuple[int, ...], like: Tensor, rank: int, group: ProcessGroup):
        """`like`: for the shape of a row, and the dtype."""
        self._sizes, self._rank, self._group = sizes, rank, group
        self._even = len(set(sizes)) == 1
        self._row = tuple(like.shape[1:])
        self.sums = like.new_empty(sum(sizes), *self._row)
        self._work: Any = None
        self._out = like.new_empty(max(sizes), *self._row)

    def start(self) -> None:
        """`sums` are complete, and given away."""
        given = self.sums
        if not self._even:
            longest = max(self._sizes)
            given = self.sums.new_zeros(len(self._sizes), longest, *self._row)
            for k, rows in enumerate(self.sums.split(list(self._sizes))):
                given[k, : len(rows)] = rows
            given = given.flatten(0, 1)
        scatter = _newest("reduce_scatter_single", "reduce_scatter_tensor")
        self._work = scatter(self._out, given, group=self._group, async_op=True)
        self.sums = given

    def wait(self) -> Tensor:
        """The own rows' sum over the ranks."""
        if self._work is not None:
            self._work.wait()
            self._work, self.sums = None, self._out
        return self._out[: self._sizes[self._rank]]


def to_owners(x: Tensor, sizes: Sequence[int], own: int, group: ProcessGroup) -> list[Tensor]:
    """Every rank's part of `x` (`sizes` along the first dimension) to this rank; `own` long."""
    world = len(sizes)
    out = x.new_empty(world * own, *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), [own] * world, list(sizes), group=group)
    return list(out.split([own] * world))


def pass_on(
    send: Sequence[Tensor], receive: Sequence[Tensor], tag: int, group: ProcessGroup
) -> list[Any]:
    """Starts to send to the next rank, and to receive from the one before."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    after = dist.get_global_rank(group, (rank + 1) % world)
    before = dist.get_global_rank(group, (rank - 1) % world)
    steps = [dist.P2POp(dist.isend, x, after, group, tag) for x in send if x.numel() > 0]
    steps += [dist.P2POp(dist.irecv, x, before, group, tag) for x in receive if x.numel() > 0]
    return list(dist.batch_isend_irecv(steps)) if steps else []


def pack(tensors: Sequence[Tensor], rows: int) -> Tensor:
    """Tensors `[rows, ..]` of any dtypes side by side, uint8 `[rows, bytes]`."""
    parts = []
    for x in tensors:
        # A copy: of a dimension of size 1 `contiguous` keeps any stride, and `view` wants 1.
        part = x.new_empty(rows, _width(x)).copy_(x.reshape(rows, _width(x)))
        parts.append(part.view(torch.uint8))
    return torch.cat(parts, dim=1)


def _width(x: Tensor) -> int:
    width = 1
    for size in x.shape[1:]:
        width *= size
    return width


def unpack(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The tensors again, of more rows; `like` for their dtypes and the shapes of a row."""
    widths = [_width(x) * x.element_size() for x in like]
    return [
        # A copy: bytes of a wider dtype begin where it may.
        part.clone(memory_format=torch.contiguous_format)
        .view(x.dtype)
        .reshape(packed.shape[0], *x.shape[1:])
        for part, x in zip(packed.split(widths, dim=1), like, strict=True)
    ]
