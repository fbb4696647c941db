"""The columns of all ranks as a rank's rows meet them: piece by piece, or all at once.

`Gathered`: one collective brings them, and one takes their gradients back. `Ring`: they pass by,
one rank's at a time, and their gradients travel with them; two shards are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..batch import Batch
from ..levels import LevelSource
from . import collectives
from .levels import column_tensors, with_columns_of
from .shards import Arrival, Shards, Span


class Piece(NamedTuple):
    """The own rows, and the columns of a range of ranks."""

    span: Span
    batch: Batch


def shards_of(batch: Batch) -> Shards:
    assert batch.shards is not None
    return batch.shards


def columns_of(batch: Batch) -> Gathered | Ring:
    return Ring(batch) if shards_of(batch).transport == "ring" else Gathered(batch)


class _GatheredLevels:
    """What describes the columns of all ranks, rank behind rank."""

    def __init__(self, batch: Batch) -> None:
        shards = shards_of(batch)
        self._source, self._sizes = batch.levels, shards.described
        self._of_memory = shards.memory
        own = column_tensors(batch.levels)
        self._tensors: list[Tensor] = []
        if own:
            packed = collectives.pack(own, self._sizes[shards.rank])
            everyone = collectives.gather(packed, self._sizes, shards.rank, shards.group)
            self._tensors = collectives.unpack(everyone, own)

    def of(self, span: Span) -> LevelSource:
        """The source of a span: candidates first, then memories."""
        return with_columns_of(self._source, [self._pick(x, span) for x in self._tensors], span)

    def _pick(self, x: Tensor, span: Span) -> Tensor:
        first = sum(self._sizes[: span.ranks.start])
        sizes = [self._sizes[k] for k in span.ranks]
        parts = list(x[first : first + sum(sizes)].split(sizes))
        of_memory = [self._of_memory[k] for k in span.ranks]
        if not any(of_memory):
            return x[first : first + sum(sizes)]
        ends = [size - q for size, q in zip(sizes, of_memory, strict=True)]
        heads = [part[:end] for part, end in zip(parts, ends, strict=True)]
        tails = [part[end:] for part, end in zip(parts, ends, strict=True)]
        return torch.cat(heads + tails)


class Gathered:
    """The columns of all ranks, on their way from the moment this is made."""

    def __init__(self, batch: Batch) -> None:
        shards = shards_of(batch)
        self._batch, self._shards = batch, shards
        rank, group = shards.rank, shards.group
        # Before the embeddings, which are many more bytes.
        self._levels = _GatheredLevels(batch)
        self._memory: Tensor | None = None
        self._of_memory: Arrival | None = None
        key = shards.side, batch.candidates.shape[1]
        if key not in shards.kept:
            own = (batch.memory, shards.memory), (batch.candidates, shards.columns)
            shards.kept[key] = [
                collectives.start_gather(x.detach(), sizes, rank, group)
                for x, sizes in own
                if x is not None and sum(sizes) > 0
            ]
        *of_memory, (self._candidates, self._arrival) = shards.kept[key]
        if of_memory:
            self._memory, self._of_memory = of_memory[0]

    def _wait(self) -> None:
        self._arrival.wait()
        if self._of_memory is not None:
            self._of_memory.wait()

    def whole(self) -> Batch:
        """The columns of all ranks; those of the others may be on their way."""
        batch = self._of(range(self._shards.world)).batch
        return batch._replace(arrival=Arrival(self._arrival.ready, self._arrival.own, self._wait))

    def pieces(self) -> Iterator[Piece]:
        """The own columns, and when they have arrived the others'."""
        yield self._own()
        self._wait()
        yield from self._others()

    def pieces_back(self) -> Iterator[Piece]:
        """The others' columns first, whose gradients travel while the own ones are computed."""
        self._wait()
        yield from self._others()
        yield self._own()

    def _own(self) -> Piece:
        span, batch = Span(self._shards, self._shards.own), self._batch
        return Piece(span, _piece(batch, batch.candidates, batch.memory, self._levels.of(span)))

    def _others(self) -> Iterator[Piece]:
        rank, world = self._shards.rank, self._shards.world
        for ranks in (range(rank), range(rank + 1, world)):
            if len(ranks) > 0:
                yield self._of(ranks)

    def _of(self, ranks: range) -> Piece:
        span = Span(self._shards, ranks)
        candidates = self._candidates[span.candidates]
        memory = None if self._memory is None else self._memory[span.memory]
        return Piece(span, _piece(self._batch, candidates, memory, self._levels.of(span)))

    def gradients(self) -> GatheredGradients:
        return GatheredGradients(self._batch)


class GatheredGradients:
    """The candidates' gradients, summed over the ranks by one collective."""

    def __init__(self, batch: Batch) -> None:
        shards = shards_of(batch)
        like = batch.scale.new_empty(0, batch.candidates.shape[1])
        self._shards = shards
        self._scatter = collectives.Scatter(shards.columns, like, shards.rank, shards.group)
        self._own: Tensor | None = None
        self._left = sum(k != shards.rank for k in range(shards.world))

    def memory(self, span: Span) -> Tensor | None:
        """Where a piece's gradient is to be written."""
        return None if span.ranks == self._shards.own else self._scatter.sums[span.candidates]

    def add(self, span: Span, d_candidates: Tensor) -> None:
        if span.ranks == self._shards.own:
            self._own = d_candidates
        else:
            _put(self._scatter.sums[span.candidates], d_candidates)
            self._left -= len(span.ranks)
        if self._left == 0:
            self._left = -1  # once
            self._scatter.sums[Span(self._shards, self._shards.own).candidates] = 0.0
            self._scatter.start()

    def memory_of_all(self) -> Tensor:
        """Where the gradient of all columns is to be written."""
        return self._scatter.sums

    def start(self, d_candidates: Tensor) -> None:
        """The gradients of all columns at once."""
        _put(self._scatter.sums, d_candidates)
        self._scatter.start()

    def finish(self) -> Tensor:
        """The own candidates' gradient."""
        of_others = self._scatter.wait()
        return of_others if self._own is None else of_others + self._own


def _put(target: Tensor, x: Tensor) -> None:
    """A backend may have written it there."""
    if target.data_ptr() != x.data_ptr():
        target.copy_(x)


class Ring:
    """The columns of one rank after the other, from the rank before to the one behind."""

    def __init__(self, batch: Batch) -> None:
        self._batch, self._shards = batch, shards_of(batch)

    def pieces(self) -> Iterator[Piece]:
        """The own columns, then those of the rank before, .."""
        shards, batch = self._shards, self._batch
        world, rank = shards.world, shards.rank
        described = column_tensors(batch.levels)
        here = {"candidates": batch.candidates.detach().contiguous()}
        sizes = {"candidates": shards.columns, "memory": shards.memory, "levels": shards.described}
        if batch.memory is not None:
            here["memory"] = batch.memory.contiguous()
        if described:
            here["levels"] = collectives.pack(described, shards.described[rank])
        for step in range(world):
            k = (rank - step) % world
            there: dict[str, Tensor] = {}
            works: list[Any] = []
            if step + 1 < world:
                there = {
                    name: x.new_empty(sizes[name][(k - 1) % world], x.shape[1])
                    for name, x in here.items()
                }
                works = collectives.pass_on([*here.values()], [*there.values()], 0, shards.group)
            span = Span(shards, range(k, k + 1))
            data = collectives.unpack(here["levels"], described) if described else []
            levels = with_columns_of(batch.levels, data, span)
            yield Piece(span, _piece(batch, here["candidates"], here.get("memory"), levels))
            for work in works:
                work.wait()
            here = there

    def pieces_back(self) -> Iterator[Piece]:
        return self.pieces()

    def gradients(self) -> RingGradients:
        return RingGradients(self._batch)


class RingGradients:
    """The candidates' gradients, which follow their columns around the ring and come home."""

    def __init__(self, batch: Batch) -> None:
        self._shards = shards_of(batch)
        self._coming: Tensor | None = None
        self._going: Tensor | None = None  # kept until it has left
        self._works: list[Any] = []

    def memory(self, span: Span) -> Tensor | None:
        return None

    def add(self, span: Span, d_candidates: Tensor) -> None:
        shards = self._shards
        self._wait()
        so_far = d_candidates if self._coming is None else self._coming.add_(d_candidates)
        if shards.world == 1:
            self._coming = so_far
            return
        before = (span.ranks.start - 1) % shards.world
        self._coming = so_far.new_empty(shards.columns[before], so_far.shape[1])
        self._going = so_far
        self._works = collectives.pass_on([so_far], [self._coming], 1, shards.group)

    def _wait(self) -> None:
        for work in self._works:
            work.wait()
        self._works = []

    def finish(self) -> Tensor:
        self._wait()
        assert self._coming is not None
        return self._coming


def _piece(batch: Batch, candidates: Tensor, memory: Tensor | None, levels: LevelSource) -> Batch:
    """The own rows with other columns, as one process would have them."""
    if memory is not None and len(memory) == 0:
        memory = None
    return batch._replace(candidates=candidates, memory=memory, levels=levels, shards=None)
