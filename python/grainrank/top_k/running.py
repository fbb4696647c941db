"""The best candidates so far of a block of queries, while blocks of scores pass by.

A row's k-th best score is a bar: a later candidate gets in only above it, at equal scores the
earlier one stays. Of a block of scores only the maximum of each run of columns is compared with
the bar, and the runs above it are looked into. What is found waits, and is sorted in when
there is about as much of it as there are results; until then the bar is too low, which costs a
little and changes nothing.

Keys are scores with the other sign, NaN in empty places: a stable ascending sort puts those last
and, since candidates come in ascending order, equal scores in the order of their indices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RUN = 64  # columns that share a maximum; a block's width is a multiple of it
_FEW_RUNS = 4  # runs are looked into one by one while they are at most 1 / _FEW_RUNS of all
_FEW_PAIRS = 16  # and scores are, while at most 1 / _FEW_PAIRS are above the bar
_DENSE_BYTES = 24  # of a pair, where whole rows are selected from
_SORT_BYTES = 40  # of a place, where what waits is sorted in


class Excluded(NamedTuple):
    """Ids of a block's queries `[R]` and candidates `[C]`; pairs of equal ids take no part."""

    queries: Tensor
    candidates: Tensor
    ordered: Tensor  # [C], the candidates' ids ascending
    order: Tensor  # int64 [C], their columns

    def pairs(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Rows, counted from `start`, and columns of the pairs of these rows."""
        ids = self.queries[start:stop]
        left = torch.searchsorted(self.ordered, ids)
        count = torch.searchsorted(self.ordered, ids, right=True) - left
        row = torch.repeat_interleave(torch.arange(len(ids), device=ids.device), count)
        first = count.cumsum(dim=0) - count
        place = torch.arange(len(row), device=ids.device) - first[row] + left[row]
        return row, self.order[place]


class RunningTopK:
    """`keys` and `columns` `[R, k]`, current after `settle`; -1 in empty places."""

    def __init__(self, first_row: int, rows: int, k: int, like: Tensor, piece_bytes: float) -> None:
        self.keys = like.new_full((rows, k), torch.nan)
        self.columns = torch.full((rows, k), -1, dtype=torch.int64, device=like.device)
        self._first_row, self._piece_bytes = first_row, piece_bytes
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []  # row, key, column
        self._count = 0

    def add(self, scores: Tensor, width: int, start: int, excluded: Excluded | None) -> None:
        """Scores `[R, W]` of candidates `start..start + width`, overwritten; W: whole runs."""
        rows = len(scores)
        scores[:, width:] = -torch.inf
        if excluded is not None:
            for a, b in self._pieces(rows, width, _DENSE_BYTES):
                row, column = excluded.pairs(a, b)
                scores[a + row, column] = -torch.inf
        above = self._above(scores)
        if above is None:
            self.settle()
            self._select(scores, width, start, excluded)
            self.settle()
            return
        row, column = above
        score = scores[row, column]
        if bool(score.isnan().any()):
            self._raise_nan(scores, start)
        inside = column < width
        if excluded is not None:  # an empty place has no bar
            ids = excluded.candidates[column.clamp_max(width - 1)]
            inside &= excluded.queries[row] != ids
        self._wait(row[inside], -score[inside], start + column[inside])
        if self._count > self.keys.numel():
            self.settle()

    def _above(self, scores: Tensor) -> tuple[Tensor, Tensor] | None:
        """Rows and columns of the scores above the bar, or NaN; None: too many."""
        rows, runs = len(scores), scores.shape[1] // RUN
        bar = -self.keys[:, -1:]  # [R, 1]
        best = scores.view(rows, runs, RUN).amax(dim=2)  # [R, W / RUN], NaN where there is one
        row, run = (best <= bar).logical_not_().nonzero(as_tuple=True)  # [H]
        if len(row) * _FEW_RUNS > best.numel():
            mask = (scores <= bar).logical_not_()
            if int(mask.count_nonzero()) * _FEW_PAIRS > mask.numel():
                return None
            row, column = mask.nonzero(as_tuple=True)
            return row, column
        found = scores.view(-1, RUN).index_select(0, row * runs + run)  # [H, RUN]
        hit, at = (found <= bar[row]).logical_not_().nonzero(as_tuple=True)
        return row[hit], run[hit] * RUN + at

    def settle(self) -> None:
        """Sorts in what waits."""
        if self._count == 0:
            return
        row, key, column = (torch.cat(x) for x in zip(*self._waiting, strict=True))
        self._waiting, self._count = [], 0
        row, order = row.sort(stable=True)  # a row's columns stay in ascending order
        key, column = key[order], column[order]
        counts = torch.bincount(row, minlength=len(self.keys))  # [R]
        ends = counts.cumsum(dim=0)
        place = torch.arange(len(row), device=row.device) - (ends - counts)[row]
        touched = counts.nonzero().squeeze(1)  # [T]
        longest, k = int(counts.max()), self.keys.shape[1]
        for a, b in self._pieces(len(touched), k + longest, _SORT_BYTES):
            rows = touched[a:b]
            size = (b - a, k + longest)
            some = slice(int((ends - counts)[rows[0]]), int(ends[rows[-1]]))
            here = torch.searchsorted(rows, row[some])
            keys, columns = self.keys.new_full(size, torch.nan), self.columns.new_full(size, -1)
            keys[:, :k], columns[:, :k] = self.keys[rows], self.columns[rows]
            keys[here, k + place[some]] = key[some]
            columns[here, k + place[some]] = column[some]
            keys, order = keys.sort(dim=1, stable=True)
            self.keys[rows] = keys[:, :k]
            self.columns[rows] = columns.gather(1, order[:, :k])

    def _select(self, scores: Tensor, width: int, start: int, excluded: Excluded | None) -> None:
        """The best k of whole rows, where most runs have something to look into."""
        k = min(self.keys.shape[1], width)
        for a, b in self._pieces(len(scores), width, _DENSE_BYTES):
            key = -scores[a:b, :width]
            if bool(key.isnan().any()):
                self._raise_nan(scores, start)
            if excluded is not None:
                key[excluded.pairs(a, b)] = torch.nan
            # topk chooses freely among equal ones, so only its value is taken; NaN is greatest.
            last = key.topk(k, dim=1, largest=False, sorted=False).values.amax(dim=1, keepdim=True)
            chosen = (key < last) | last.isnan()
            tied = key == last
            room = k - chosen.sum(dim=1, keepdim=True)
            chosen |= tied & (tied.cumsum(dim=1, dtype=torch.int32) <= room)
            chosen &= (key >= self.keys[a:b, -1:]).logical_not_()
            chosen &= key == key  # not the excluded ones
            row, column = chosen.nonzero(as_tuple=True)
            self._wait(a + row, key[row, column], start + column)

    def _wait(self, row: Tensor, key: Tensor, column: Tensor) -> None:
        if len(row) > 0:
            self._waiting.append((row, key, column))
            self._count += len(row)

    def _pieces(self, rows: int, width: int, pair_bytes: int) -> list[tuple[int, int]]:
        """Some rows at a time."""
        size = max(1, int(self._piece_bytes / (width * pair_bytes)))
        return [(a, min(a + size, rows)) for a in range(0, rows, size)]

    def _raise_nan(self, scores: Tensor, start: int) -> None:
        row, column = scores.isnan().nonzero()[0].tolist()
        raise ValueError(
            f"scores must not be NaN, got NaN for row {self._first_row + row} of queries and row "
            f"{start + column} of candidates; look for NaN or infinity in these two embeddings"
        )
