"""The products of a row block's gradient, without the tiles in which every entry is negligible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .operands import RowPasses

TILE = 256  # rows and columns: products of so many still run at nearly their full rate
_MOST = 0.75  # of a strip's tiles: beyond, one product of all costs no more


class TileProducts:
    """dQ and dC of one block; a tile is left out where `|gradient| < below` in all of it.

    `below`: 0-d, for pairs whose factors are 1. A row's or a column's least factor in any prefix,
    `[R]` and `[M + Q]`, brings it to the gradient that is multiplied.
    """

    def __init__(
        self,
        gradient: Tensor,
        below: Tensor,
        row_factors: Tensor | None,
        column_factors: Tensor | None,
    ) -> None:
        r, m = gradient.shape
        self._gradient = gradient
        of_rows, of_columns = _least(row_factors, r, below), _least(column_factors, m, below)
        bounds = (below * of_rows[:, None] * of_columns).tolist()
        #: Strips of rows, and the columns of each that count.
        self._kept = [
            (rows, list(_runs(gradient[rows], of_strip)))
            for rows, of_strip in zip(_slices(r), bounds, strict=True)
        ]

    def queries_(self, passes: RowPasses, out: Tensor, candidates: Tensor) -> None:
        """`out = gradient @ candidates`, `[R, D]`."""
        for rows, runs in self._kept:
            of_rows = out[rows]
            if not runs:
                of_rows.zero_()
            for i, columns in enumerate(runs):
                add = of_rows if i > 0 else None
                passes.product_(of_rows, self._gradient[rows, columns], candidates[columns], add)

    def candidates_(self, passes: RowPasses, out: Tensor, queries: Tensor) -> None:
        """`out += gradient.T @ queries`, `[M, D]`: of the first columns, those with a gradient."""
        m = out.shape[0]
        for rows, runs in self._kept:
            for run in runs:
                columns = slice(run.start, min(run.stop, m))
                if columns.start < m:
                    of_columns = out[columns]
                    transposed = self._gradient[rows, columns].t()
                    passes.product_(of_columns, transposed, queries[rows], of_columns)


def _slices(size: int) -> list[slice]:
    return [slice(start, min(start + TILE, size)) for start in range(0, size, TILE)]


def _least(factors: Tensor | None, size: int, like: Tensor) -> Tensor:
    """The least factor of each tile."""
    if factors is None:
        return like.new_ones(len(_slices(size)))
    return torch.stack([factors[here].amin() for here in _slices(size)])


def _runs(strip: Tensor, bounds: Sequence[float]) -> Iterator[slice]:
    """Columns of a strip that count, adjacent tiles together."""
    tiles = _slices(strip.shape[1])
    kept = [
        here for here, bound in zip(tiles, bounds, strict=True) if _counts(strip[:, here], bound)
    ]
    if len(kept) > _MOST * len(tiles):
        kept = tiles
    while kept:
        start = stop = kept[0].start
        while kept and kept[0].start == stop:
            stop = kept.pop(0).stop
        yield slice(start, stop)


def _counts(tile: Tensor, bound: float) -> bool:
    """NaN counts."""
    least, most = torch.aminmax(tile)
    return not (-bound < float(least) and float(most) < bound)
