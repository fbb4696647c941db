"""The fused passes in Triton: the kernels of kernels/ behind the contract of `row_blocks.Passes`.

The similarities are a product inside the kernels (`fused`), or one of the vendor's library into a
row block of the accumulation dtype. Their gradient is written in the dtype of the embeddings, for
the vendor's products dQ and dC.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from . import triton_launch
from .batch import Batch
from .block_ceilings import Ceilings
from .gpu_levels import same_dtype
from .gpu_passes import GpuPasses
from .kernels.gradients import gradient_block, softplus_sums
from .kernels.rows import finish_rows, row_norms
from .kernels.tables import level_tables, merge_tables
from .levels import Ceiled
from .row_blocks import Block, Channel
from .table_sets import TableSet
from .triton_launch import Launch, Width, launch_for, narrower, precision_of
from .triton_levels import TritonLevels

ROW_WARPS = 4  # of the kernels over rows of embeddings
MERGED = 256  # entries that a program of `merge_tables` merges
PROGRAMS = 256  # that a launch over the rows should have at least: then columns are not split
_PARTS = 4, 8  # fields of the parts of light and full tables
_INTEGERS = (3, 6, 7)
_SIMPLE = (("diagonal",), ("prefix",), ("count",))


class TritonPasses(GpuPasses):
    """The passes for one batch; holds the level data in the layout that the kernels read."""

    row_multiple = 1

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        self._precision = precision_of(batch)
        self.fused = bool(self._precision)
        self._levels = TritonLevels(batch.levels)
        # What takes registers beside the tile: more than a lookup for the levels, and pointers to
        # single features where rows do not begin at multiples of 16.
        simple = self._levels.kinds in _SIMPLE and not self._levels.exclusions
        simple = simple and not isinstance(batch.levels, Ceiled)
        self._crowded = not simple or (self.fused and batch.prefixes[-1] % 16 > 0)
        self.moment_rows = self._launch("wide").rows  # and of every other width
        entry = sum(dtype.itemsize for dtype in self._part_dtypes(full=True))
        tables_rows = self._launch("middle").rows
        self.column_table_bytes = entry * (batch.levels.max_level + 1) / tables_rows
        self._margin = None if batch.circle is None else self._scale.new_full((1,), batch.circle)
        self._ceilings = Ceilings(batch.levels, same_dtype)

    def norms(
        self, x: Tensor, prefixes: tuple[int, ...], norms: Tensor, unit: Tensor | None
    ) -> None:
        triton_launch.run(
            row_norms, (x.shape[0],),
            x, x.stride(0), norms, x.shape[0], prefixes, _features(prefixes),
            num_warps=ROW_WARPS,
        )  # fmt: skip

    def finish_(
        self,
        d: Tensor,
        values: Tensor,
        prefixes: tuple[int, ...],
        norms: Tensor | None,
        along: Tensor | None,
        dots: Tensor,
        unit: Tensor | None,
    ) -> None:
        triton_launch.run(
            finish_rows, (d.shape[0],),
            d, d.stride(0), values, values.stride(0), self._scale, unit, norms, along, dots,
            d.shape[0], prefixes, _features(prefixes), num_warps=ROW_WARPS,
        )  # fmt: skip

    def tables(self, block: Block, channel: int, rows: TableSet, columns: TableSet | None) -> None:
        r, m = block.shape
        full = rows.neg_lse is not None
        width: Width = "narrow" if full and columns is not None else "middle" if full else "wide"
        launch = self._launch(width)
        row_tiles = triton.cdiv(r, launch.rows)
        splits, tiles_per_split = column_splits(row_tiles, triton.cdiv(m, launch.columns))
        table_columns = 0 if columns is None else columns.lse.shape[0]
        row_parts = self._parts(splits, r, full)
        column_parts = self._parts(row_tiles, table_columns, full)
        triton_launch.run(
            level_tables, (row_tiles, splits),
            *self._product(block), self._scale, self._factors_of(channel), self._margin,
            *self._levels_at(block), row_parts, column_parts,
            block.start, r, m, table_columns, tiles_per_split,
            **self._constants(launch), FULL=full, COLUMNS=columns is not None,
        )  # fmt: skip
        self._merge(row_parts, rows, full)
        if columns is not None:
            self._merge(column_parts, columns, full)

    def gradients_(
        self,
        block: Block,
        channels: Sequence[Channel],
        row_moments: Tensor | None,
        column_moments: Tensor | None,
    ) -> None:
        r, m = block.shape
        launch = self._launch(_width(channels))
        row_tiles, column_tiles = triton.cdiv(r, launch.rows), triton.cdiv(m, launch.columns)
        levels = self._batch.levels.max_level + 1
        level_parts = row_parts = None
        if channels[0].moments is not None:
            level_parts = self.empty(len(channels), column_tiles, r, levels)
        if row_moments is not None:
            row_parts = self.empty(column_tiles, r)
        columns = [c.columns for c in channels if c.columns is not None]
        table_columns = columns[0].tables.lse.shape[0] if columns else 0
        sources, exclusions, row_ceilings, column_ceilings, *judged = self._levels_at(block)
        triton_launch.run(
            gradient_block, (row_tiles * column_tiles,),
            *self._product(block), self._scale, self._margin, _gradient(block),
            sources, exclusions, row_ceilings, column_ceilings, *judged,
            tuple(self._channel(f, c) for f, c in enumerate(channels)),
            level_parts, row_parts, column_moments, block.start, r, m, table_columns,
            **self._constants(launch),
        )  # fmt: skip
        if level_parts is not None:
            for c, part in zip(channels, level_parts, strict=True):
                assert c.moments is not None
                torch.sum(part, dim=0, out=c.moments)
        if row_parts is not None:
            assert row_moments is not None
            torch.sum(row_parts, dim=0, out=row_moments)

    def softplus(
        self,
        block: Block,
        channel: int,
        thresholds: Tensor,
        weights: Tensor | None,
        value: Tensor,
        slope: Tensor,
    ) -> None:
        r, m = block.shape
        launch = self._launch("middle")
        levels = self._batch.levels.max_level + 1
        row_tiles = triton.cdiv(r, launch.rows)
        splits, tiles_per_split = column_splits(row_tiles, triton.cdiv(m, launch.columns))
        parts = self.empty(2, splits, r, levels)
        sources, exclusions, row_ceilings, _, *judged = self._levels_at(block)
        triton_launch.run(
            softplus_sums, (row_tiles, splits),
            *self._product(block), self._scale, self._factors_of(channel), self._margin,
            None if weights is None else _gradient(block),
            sources, exclusions, row_ceilings, *judged,
            thresholds, int(thresholds.shape[0] > 1), weights, parts[0], parts[1],
            block.start, r, m, tiles_per_split, **self._constants(launch),
        )  # fmt: skip
        torch.sum(parts[0], dim=0, out=value)
        torch.sum(parts[1], dim=0, out=slope)

    def _part_dtypes(self, full: bool) -> list[torch.dtype]:
        return [torch.int32 if n in _INTEGERS else self._batch.dtype for n in range(_PARTS[full])]

    def _parts(self, count: int, lines: int, full: bool) -> tuple[Tensor, ...]:
        shape = count, lines, self._batch.levels.max_level + 1
        dtypes = self._part_dtypes(full)
        return tuple(torch.empty(shape, dtype=dtype, device=self._device) for dtype in dtypes)

    def _merge(self, parts: tuple[Tensor, ...], out: TableSet, full: bool) -> None:
        count, lines, levels = parts[0].shape
        triton_launch.run(
            merge_tables, (triton.cdiv(lines * levels, MERGED),),
            parts, count, lines, out.lse, out.total, out.count, out.neg_lse, out.highest,
            out.lowest, out.highest_at, out.lowest_at, levels, full, MERGED,
        )  # fmt: skip

    def _launch(self, width: Width) -> Launch:
        features = self._batch.prefixes[-1]
        if self._crowded:
            width = narrower(width)
        return launch_for(self._precision, self.operand_dtype, features, width)

    def _constants(self, launch: Launch) -> dict[str, Any]:
        return {
            "KINDS": self._levels.kinds,
            "LARGEST": self._levels.largest,
            "LEVELS": self._batch.levels.max_level + 1,
            "PRECISION": self._precision,
            **launch.arguments,
        }

    def _product(self, block: Block) -> tuple[Any, ...]:
        """Where the similarities come from, and their factors."""
        s, q, c = block.similarities, block.queries, block.candidates
        operands: tuple[Any, ...] = q, q.stride(0), c, c.stride(0), q.shape[1]
        if s is not None:
            operands = s, s.stride(0)
        return operands, block.row_factors, block.column_factors

    def _levels_at(self, block: Block) -> tuple[Any, ...]:
        """Sources, exclusions, ceilings of the rows and the columns, what they judge, and curated
        ids.
        """
        sources = self._levels.at(block.start, block.start + block.shape[0])
        return sources, self._levels.exclusions, *self._ceilings.at(block), self._ceilings.curated

    def _channel(self, f: int, c: Channel) -> tuple[Any, ...]:
        columns = None
        if c.columns is not None:
            columns = _table_arguments(c.columns.tables, c.columns.d_tables)
        softplus = None
        if c.d_tables.softplus is not None:
            assert c.thresholds is not None
            softplus = c.thresholds.contiguous(), c.d_tables.softplus.contiguous()
        return self._factors_of(f), _table_arguments(c.tables, c.d_tables), columns, softplus


def _width(channels: Sequence[Channel]) -> Width:
    """By the tables that the gradient is made of."""
    given = [d for c in channels for d in c.d_tables if d is not None]
    given += [d for c in channels if c.columns for d in c.columns.d_tables if d is not None]
    if len(channels) > 1 or len(given) > 3:
        return "narrow"
    return "wide" if len(given) == 1 else "middle"


def _table_arguments(tables: TableSet, d_tables: Any) -> tuple[Tensor | None, ...]:
    given = tables.lse, d_tables.lse, tables.neg_lse, d_tables.neg_lse, d_tables.total
    return tuple(None if t is None else t.contiguous() for t in given)


def _gradient(block: Block) -> tuple[Any, ...]:
    assert block.gradient is not None
    return block.gradient, block.gradient.stride(0), block.unit


def column_splits(row_tiles: int, column_tiles: int) -> tuple[int, int]:
    """Into how many parts the columns are split, and the tiles of one: enough programs to fill a
    GPU, whatever the number of rows.
    """
    wanted = min(column_tiles, triton.cdiv(PROGRAMS, max(row_tiles, 1)))
    tiles_per_split = triton.cdiv(column_tiles, wanted)
    return triton.cdiv(column_tiles, tiles_per_split), tiles_per_split


def _features(prefixes: tuple[int, ...]) -> int:
    """Features at a time: at least one for each thread, or several threads would hold the same one,
    and one of them read what another has written over it.
    """
    return min(1024, max(32 * ROW_WARPS, int(triton.next_power_of_2(prefixes[-1]))))
