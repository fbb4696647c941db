"""How the rows and columns of a batch are spread over ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Transport = Literal["gather", "ring"]


class Shards(NamedTuple):
    """The parts of all ranks.

    The whole batch has the queries of rank 0, of rank 1, ..; its columns are the candidates of rank
    0, of rank 1, .., and behind them the memories of rank 0, of rank 1, ..
    """

    group: ProcessGroup
    rank: int
    rows: tuple[int, ...]  # N of each rank
    columns: tuple[int, ...]  # M of each
    memory: tuple[int, ...]  # Q of each
    transport: Transport
    side: str  # which embeddings the columns are: a name
    kept: dict[tuple[str, int], Any]  # what was gathered in this step

    @property
    def world(self) -> int:
        """W."""
        return len(self.rows)

    @property
    def own(self) -> range:
        return range(self.rank, self.rank + 1)

    @property
    def first_row(self) -> int:
        """The first row of this rank."""
        return sum(self.rows[: self.rank])

    @property
    def described(self) -> tuple[int, ...]:
        """Columns that the level source of each rank describes: M + Q."""
        return tuple(m + q for m, q in zip(self.columns, self.memory, strict=True))

    def of_queries(self) -> Shards:
        """With the queries as the columns, too."""
        nothing = (0,) * self.world
        return self._replace(columns=self.rows, memory=nothing, side="queries")

    def swapped(self) -> Shards:
        """With the sides exchanged."""
        return self.of_queries()._replace(rows=self.columns)


class Span(NamedTuple):
    """The columns of a range of ranks: candidates, then memories."""

    shards: Shards
    ranks: range

    @property
    def candidates(self) -> slice:
        """Where the candidates are among those of all ranks."""
        return span_of(self.shards.columns, self.ranks)

    @property
    def memory(self) -> slice:
        """Where the memories are among those of all ranks."""
        return span_of(self.shards.memory, self.ranks)

    def outer(self, at: Tensor) -> Tensor:
        """Column numbers of the span, -1 for none, as those of the whole batch."""
        m = self.candidates.stop - self.candidates.start
        behind = sum(self.shards.columns) + self.memory.start - m
        return torch.where(at < m, at + self.candidates.start, at + behind).where(at >= 0, at)

    def inner(self, at: Tensor) -> Tensor:
        """Column numbers of the whole batch as those of the span; -1 where they are not in it."""
        total = sum(self.shards.columns)
        m = self.candidates.stop - self.candidates.start
        q = self.memory.stop - self.memory.start
        one, two = at - self.candidates.start, at - total - self.memory.start
        inside = (at >= 0) & (at < total) & (one >= 0) & (one < m)
        behind = (at >= total) & (two >= 0) & (two < q)
        return torch.where(inside, one, torch.where(behind, two + m, -1))


def span_of(sizes: tuple[int, ...], ranks: range) -> slice:
    """Where the parts of these ranks are, one rank's behind the other's."""
    start = sum(sizes[: ranks.start])
    return slice(start, start + sum(sizes[ranks.start : ranks.stop]))


class Arrival:
    """Rows of other ranks that are on their way into memory that is there already."""

    def __init__(self, ready: slice, own: Tensor, finish: Callable[[], None]) -> None:
        self.ready, self.own = ready, own  # where the own ones will be, and these
        self._finish: Callable[[], None] | None = finish

    @property
    def on_the_way(self) -> bool:
        return self._finish is not None

    def wait(self) -> None:
        """Until all of them are there."""
        if self._finish is not None:
            self._finish()
            self._finish = None
