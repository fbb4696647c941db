"""Level sources whose columns are those of other ranks.

A source describes the own rows and the own columns. One that says something of single pairs (a
matrix) has, in its distributed form, the own rows and the columns of all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..levels import (
    DenseLevels,
    Diagonal,
    FalseNegativeMargin,
    GrainKeys,
    LevelSource,
    SparseLevels,
)
from .collectives import gather, gather_equal
from .shards import Shards, Span, span_of

Matrix = DenseLevels | SparseLevels


def _same(x: Tensor) -> Tensor:
    return x


def _unchanged(matrix: LevelSource) -> LevelSource:
    return matrix


def matrices(source: LevelSource | None) -> Iterator[Matrix]:
    """The matrices of a source, in the order of `with_columns`."""
    if source is None:
        return
    for member in source.members:
        yield from matrices(member)
    if isinstance(source, (DenseLevels, SparseLevels)):
        yield source


def describe(source: LevelSource | None) -> str:
    """What has to be the same on all ranks."""
    if source is None:
        return "None"
    if isinstance(source, FalseNegativeMargin):
        given = [name for name in ("reference", "curated") if getattr(source, name) is not None]
        own = f"margin:{source.margin:g}:{source.relative}:{','.join(given)}"
    else:
        own = source.kind.partition("(")[0]
    members = ",".join(describe(member) for member in source.members)
    return f"{own}({members})" if members else own


def describe_columns(source: LevelSource | None) -> str:
    """The data that the candidates bring, as all ranks have to."""
    if source is None:
        return "None"
    tensors: list[Tensor] = []
    source.with_columns(_noting(tensors), _unchanged)
    rows = (f"{str(x.dtype).removeprefix('torch.')}{list(x.shape[1:])}" for x in tensors)
    return ", ".join(rows) or "nothing"


def _noting(tensors: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def note(x: Tensor) -> Tensor:
        tensors.append(x)
        return x

    return note


def check_levels(
    source: LevelSource, num_queries: int, num_columns: int, device: torch.device
) -> None:
    """`LevelSource.check` for own rows and columns; the columns of matrices are compared later."""
    for member in source.members:
        check_levels(member, num_queries, num_columns, device)
    if isinstance(source, (DenseLevels, SparseLevels)):
        num_columns = source.num_candidates
    source.check_own(num_queries, num_columns, device)


def over_ranks(
    source: LevelSource, shards: Shards, whole: Iterator[bool], device: torch.device
) -> LevelSource:
    """The distributed form. `whole`: of each matrix, whether it has the columns of all ranks."""

    def change(matrix: LevelSource) -> LevelSource:
        if isinstance(matrix, Diagonal):
            return _own_pairs(shards, device)
        if next(whole):
            return matrix
        return _spread(matrix, shards)

    return source.with_columns(_same, change)


def own_numbers(sizes: tuple[int, ...], shards: Shards, device: torch.device) -> Tensor:
    """Numbers for the own items that no other rank has."""
    own = span_of(sizes, shards.own)
    return torch.arange(own.start, own.stop, device=device)


def _own_pairs(shards: Shards, device: torch.device) -> LevelSource:
    """Candidate i of a rank is the positive of its query i."""
    numbers = own_numbers(shards.columns, shards, device)
    rows, memory = shards.rows[shards.rank], shards.memory[shards.rank]
    queries = torch.full((rows,), -1, device=device)
    pairs = min(rows, len(numbers))
    queries[:pairs] = numbers[:pairs]
    unknown = torch.full((memory,), -1, device=device)
    return GrainKeys(queries[:, None], torch.cat([numbers, unknown])[:, None])


def _spread(matrix: LevelSource, shards: Shards) -> LevelSource:
    """A matrix of the own columns as one of all columns; the other pairs are negatives."""
    own = Span(shards, shards.own)
    total = sum(shards.columns) + sum(shards.memory)
    if isinstance(matrix, DenseLevels):
        (given,) = matrix.tensors
        at = own.outer(torch.arange(given.shape[1], device=given.device))
        levels = given.new_zeros(given.shape[0], total)
        levels[:, at] = given
        return DenseLevels(levels, matrix.max_level)
    assert isinstance(matrix, SparseLevels)
    row, column, level = matrix.entries()
    shape = shards.rows[shards.rank], total
    return SparseLevels.from_entries((row, own.outer(column), level), shape, matrix.max_level)


def transposed(source: LevelSource, shards: Shards) -> LevelSource:
    """The distributed form of the transposed levels: own candidates, and the queries of all ranks.

    The rows of a matrix are gathered for it.
    """
    return source.transposed().with_columns(_same, lambda matrix: _exchanged(matrix, shards))


def _exchanged(matrix: LevelSource, shards: Shards) -> LevelSource:
    """From [columns of all ranks, own rows] to [own columns, rows of all ranks]."""
    rank, group = shards.rank, shards.group
    own, total = span_of(shards.columns, shards.own), sum(shards.rows)
    if isinstance(matrix, DenseLevels):
        mine = matrix.tensors[0].t()  # [N, M of all]
        everyone = gather(mine, shards.rows, rank, group)
        return DenseLevels(everyone[:, own].t(), matrix.max_level)
    assert isinstance(matrix, SparseLevels)
    column, row, level = matrix.entries()
    entries = torch.stack([column, row + shards.first_row, level.long()], dim=1)
    sizes = gather_equal(torch.tensor(len(entries), device=entries.device), group)
    column, row, level = gather(entries, tuple(sizes.tolist()), rank, group).unbind(dim=1)
    mine = (column >= own.start) & (column < own.stop)
    kept = column[mine] - own.start, row[mine], level[mine].to(torch.int8)
    shape = own.stop - own.start, total
    return SparseLevels.from_entries(kept, shape, matrix.max_level)


def column_tensors(source: LevelSource) -> list[Tensor]:
    """What describes the candidates, `[M + Q, ..]` each."""
    tensors: list[Tensor] = []
    source.with_columns(_noting(tensors), _unchanged)
    return tensors


def with_columns_of(source: LevelSource, tensors: Sequence[Tensor], span: Span) -> LevelSource:
    """The levels of the own rows and the columns of a span, from `column_tensors` of these."""
    given = iter(tensors)
    return source.with_columns(lambda _: next(given), lambda matrix: _columns(matrix, span))


def _columns(matrix: LevelSource, span: Span) -> LevelSource:
    """Of a matrix of all columns."""
    shards = span.shards
    if len(span.ranks) == shards.world:
        return matrix
    first = sum(shards.columns)
    memory = slice(first + span.memory.start, first + span.memory.stop)
    if isinstance(matrix, DenseLevels):
        (levels,) = matrix.tensors
        parts = [levels[:, span.candidates], levels[:, memory]]
        return DenseLevels(torch.cat(parts, dim=1), matrix.max_level)
    assert isinstance(matrix, SparseLevels)
    row, column, level = matrix.entries()
    inner = span.inner(column)
    inside = inner >= 0
    kept = row[inside], inner[inside], level[inside]
    size = span.candidates.stop - span.candidates.start + memory.stop - memory.start
    return SparseLevels.from_entries(kept, (shards.rows[shards.rank], size), matrix.max_level)
