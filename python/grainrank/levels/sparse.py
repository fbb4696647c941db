"""Levels from graded judgements (qrels), stored as compressed sparse rows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..validation import MAX_ROWS, check_device, check_integers
from .base import LevelSource
from .dense import level_limit

Ids = Sequence[Hashable] | Tensor


class SparseLevels(LevelSource):
    """Levels of the judged pairs; every other pair is a negative (level 0).

    Args:
        indptr: integers `[N + 1]`: row i has the entries `indptr[i]..indptr[i + 1]`.
        indices: candidate of each entry, integers `[nnz]`, in any order within a row.
        levels: level of each entry, integers `[nnz]`, -1 (ignored), 0, 1..L.
        num_candidates: M.
        max_level: L; `None` (default) reads it from the data.

    The data is read and sorted once, here; both compressed rows and columns are kept.

    Raises:
        TypeError: tensors, or an M, that are not integers.
        ValueError: an `indptr` that is not one of compressed rows, a candidate outside `0..M - 1`,
            a pair that is given twice, a level below -1 or above L, an L outside 1..15, an M below
            0 or of 2^31 or more.

    Example:
        >>> levels = SparseLevels.from_qrels(
        ...     ["q1", "q2"], ["d1", "d2", "d3"], {("q1", "d1"): 2, ("q2", "d3"): 1}
        ... )
        >>> levels.block(0, 2, 3).tolist()
        [[2, 0, 0], [0, 0, 1]]
    """

    def __init__(
        self,
        indptr: Tensor,
        indices: Tensor,
        levels: Tensor,
        num_candidates: int,
        max_level: int | None = None,
    ) -> None:
        if isinstance(num_candidates, bool) or not isinstance(num_candidates, int):
            raise TypeError(f"num_candidates must be an int, got {type(num_candidates).__name__}")
        if not 0 <= num_candidates <= MAX_ROWS:
            raise ValueError(f"num_candidates must lie in 0..2^31 - 1, got {num_candidates}")
        ends = check_integers("indptr", indptr, "[N + 1]", 1).long()
        column = check_integers("indices", indices, "[nnz]", 1).long()
        value = check_integers("levels", levels, "[nnz]", 1)
        nnz, device = value.shape[0], value.device
        sizes = ends.diff()
        if len(ends) < 1 or int(ends[0]) != 0 or int(ends[-1]) != nnz or bool((sizes < 0).any()):
            raise ValueError(
                f"indptr must rise from 0 to the {nnz} entries of levels, got {ends.tolist()[:8]}"
            )
        if column.shape[0] != nnz:
            raise ValueError(f"indices must have nnz = {nnz} entries, got {column.shape[0]}")
        low, high = (int(x) for x in value.aminmax()) if nnz else (0, 0)
        limit = level_limit(max_level, low, high)
        if low < -1 or high > limit:
            raise ValueError(f"levels must lie in -1..{limit} (max_level), got {low}..{high}")
        if nnz and not 0 <= int(column.min()) <= int(column.max()) < num_candidates:
            raise ValueError(
                f"indices must lie in 0..{num_candidates - 1} (num_candidates), "
                f"got {int(column.min())}..{int(column.max())}"
            )
        rows = len(sizes)
        row = torch.repeat_interleave(torch.arange(rows, device=device), sizes)
        pair, order = (row * num_candidates + column).sort()
        if bool((pair.diff() == 0).any()):
            twice = int(pair[1:][pair.diff() == 0][0])
            raise ValueError(
                f"a pair must be given once, got query {twice // num_candidates} with candidate "
                f"{twice % num_candidates} twice; keep one of its levels"
            )
        entries = row[order], column[order], value[order].to(torch.int8)
        self._set(limit, _compressed(*entries, rows, num_candidates))

    def _set(self, max_level: int, tensors: tuple[Tensor, ...]) -> None:
        """`tensors`: ends, sorted indices and levels of the rows, then of the columns."""
        self.max_level = max_level
        self.kind = f"sparse:{max_level}"
        self.tensors = tensors

    @classmethod
    def from_tensors(cls, max_level: int, tensors: Sequence[Tensor]) -> SparseLevels:
        """From `max_level` and `tensors` of another, without reading them."""
        self = cls.__new__(cls)
        self._set(max_level, tuple(tensors))
        return self

    @classmethod
    def from_entries(
        cls, entries: tuple[Tensor, Tensor, Tensor], shape: tuple[int, int], max_level: int
    ) -> SparseLevels:
        """From sound entries: rows, columns and levels in any order, and N, M."""
        row, column, level = entries
        order = (row * shape[1] + column).argsort()
        tensors = _compressed(row[order], column[order], level[order], *shape)
        return cls.from_tensors(max_level, tensors)

    @classmethod
    def from_qrels(
        cls,
        query_ids: Ids,
        candidate_ids: Ids,
        qrels: Mapping[Any, Any],
        max_level: int | None = None,
    ) -> SparseLevels:
        """From judgements as TREC, BEIR and ir_datasets give them.

        Args:
            query_ids: the N queries of the batch, in its order: strings, ints, or a tensor `[N]`.
            candidate_ids: the M candidates of the batch.
            qrels: `{(query, candidate): grade}` or `{query: {candidate: grade}}`, of any size;
                judgements of others than the batch's are left out. A grade is the level of the pair
                (-1: ignored); an id that is in the batch twice has its grade twice.
            max_level: L; `None` (default) reads it from the batch. Pass the highest grade of the
                data, so that L is the same in every batch.

        Raises:
            TypeError: grades that are not integers.
            ValueError: grades below -1 or above L.
        """
        queries, candidates = _positions(query_ids), _positions(candidate_ids)
        entries: list[tuple[int, int, int]] = []
        for query, candidate, grade in _judgements(qrels, queries):
            if candidate not in candidates:
                continue
            if isinstance(grade, bool) or int(grade) != grade:
                raise TypeError(
                    f"grades must be integers, got {grade!r} for ({query!r}, {candidate!r})"
                )
            entries += [(i, j, int(grade)) for i in queries[query] for j in candidates[candidate]]
        device = query_ids.device if isinstance(query_ids, Tensor) else torch.device("cpu")
        n = sum(map(len, queries.values()))
        m = sum(map(len, candidates.values()))
        table = torch.tensor(sorted(entries)).reshape(-1, 3).long().T.contiguous()
        row, column, level = table.to(device)
        return cls(_ends(row, n), column, level, m, max_level)

    @property
    def num_candidates(self) -> int:
        """M."""
        return self.tensors[3].shape[0] - 1

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, columns and levels, sorted."""
        ends, column, level, *_ = self.tensors
        rows = torch.arange(len(ends) - 1, device=ends.device)
        return torch.repeat_interleave(rows, ends.diff()), column, level

    def check_own(self, num_queries: int, num_candidates: int, device: torch.device) -> None:
        ends = self.tensors[0]
        shape = ends.shape[0] - 1, self.num_candidates
        if shape != (num_queries, num_candidates):
            raise ValueError(
                f"levels must be of [N, M] = [{num_queries}, {num_candidates}] pairs, "
                f"got SparseLevels of {list(shape)}"
            )
        check_device("levels", ends, device)

    def block(
        self, start: int, stop: int, num_candidates: int, device: torch.device | None = None
    ) -> Tensor:
        ends, indices, levels, *_ = self.tensors
        first, last = ends[start], ends[stop]
        row = torch.repeat_interleave(
            torch.arange(stop - start, device=ends.device), ends[start : stop + 1].diff()
        )
        out = levels.new_zeros(stop - start, num_candidates)
        out[row, indices[first:last]] = levels[first:last]
        return out

    def transposed(self) -> LevelSource:
        return SparseLevels.from_tensors(self.max_level, (*self.tensors[3:], *self.tensors[:3]))

    def with_columns(
        self, column: Callable[[Tensor], Tensor], matrix: Callable[[LevelSource], LevelSource]
    ) -> LevelSource:
        return matrix(self)


def _compressed(
    row: Tensor, column: Tensor, level: Tensor, rows: int, columns: int
) -> tuple[Tensor, ...]:
    """The tensors of entries sorted by row, then column."""
    by_column = (column * rows + row).argsort()
    return (
        *(_ends(row, rows), column, level),
        *(_ends(column[by_column], columns), row[by_column], level[by_column]),
    )


def _ends(sorted_rows: Tensor, rows: int) -> Tensor:
    """`[rows + 1]`: where each row's entries begin, and the last one's end."""
    return torch.searchsorted(sorted_rows, torch.arange(rows + 1, device=sorted_rows.device))


def _positions(ids: Ids) -> dict[Hashable, list[int]]:
    positions: dict[Hashable, list[int]] = {}
    for i, item in enumerate(ids.tolist() if isinstance(ids, Tensor) else ids):
        positions.setdefault(item, []).append(i)
    return positions


def _judgements(
    qrels: Mapping[Any, Any], queries: Mapping[Hashable, Any]
) -> Iterator[tuple[Any, Any, Any]]:
    """Those of the given queries: of nested qrels nothing else is looked at."""
    first = next(iter(qrels.values()), None)
    if isinstance(first, Mapping):
        for query in queries:
            for candidate, grade in qrels.get(query, {}).items():
                yield query, candidate, grade
        return
    for pair, grade in qrels.items():
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(
                f"qrels must have keys (query, candidate), or be nested, got the key {pair!r}"
            )
        if pair[0] in queries:
            yield *pair, grade
