"""The fused passes in CUDA C++: kernels/cuda/ behind the contract of `row_blocks.Passes`.

`torch.mm` writes the similarities of a row block in the accumulation dtype; a pass reads each of
them once. Their gradient is written in the dtype of the embeddings, for the products dQ and dC.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _cuda, cuda_launch  # type: ignore[attr-defined]
from .batch import Batch
from .block_ceilings import Ceilings
from .cuda_launch import dtype_of, stream_of
from .cuda_levels import CudaLevels
from .gpu_passes import GpuPasses
from .row_blocks import Block, Channel
from .table_sets import TableGradientSet, TableSet

_TALL = 1024  # rows: several of the kernels' tiles
_FULL_TABLES = ("neg_lse", "highest", "lowest", "highest_at", "lowest_at")


class CudaPasses(GpuPasses):
    """The passes for one batch; holds the level data in the layout that the kernels read."""

    moment_rows: int = _cuda.MOMENT_ROWS
    #: Rows of float16 begin at multiples of the alignment.
    row_multiple: int = _cuda.ALIGNMENT // torch.float16.itemsize
    fused = False

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        self._levels = CudaLevels(batch.levels)
        self._ceilings = Ceilings(batch.levels, self._levels.compared)
        curated = self._ceilings.curated
        self._kept = _cuda.Ids() if curated is None else self._levels.exclusion(*curated)
        sizes = [self._table_workspace(_TALL, 1, columns, True) for columns in (0, 1)]
        self.column_table_bytes = (sizes[1] - sizes[0]) / _TALL

    def norms(
        self, x: Tensor, prefixes: tuple[int, ...], norms: Tensor, unit: Tensor | None
    ) -> None:
        _cuda.norms(
            dtype=dtype_of(x),
            x=cuda_launch.pointer(x),
            row_stride=x.stride(0),
            rows=x.shape[0],
            prefixes=prefixes,
            norms_dtype=dtype_of(norms),
            norms=cuda_launch.pointer(norms),
            stream=stream_of(self._device),
        )

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
        _cuda.finish(
            dtype=dtype_of(d),
            d=cuda_launch.pointer(d),
            d_stride=d.stride(0),
            values_dtype=dtype_of(values),
            values=cuda_launch.pointer(values),
            value_stride=values.stride(0),
            rows=d.shape[0],
            prefixes=prefixes,
            scale=cuda_launch.pointer(self._scale),
            unit=cuda_launch.pointer(unit),
            norms=cuda_launch.pointer(norms),
            along=cuda_launch.pointer(along),
            dots=cuda_launch.pointer(dots),
            stream=stream_of(self._device),
        )

    def tables(self, block: Block, channel: int, rows: TableSet, columns: TableSet | None) -> None:
        given = self._block(block)
        table_columns = 0 if columns is None else columns.lse.shape[0]
        size = self._table_workspace(*block.shape, table_columns, rows.neg_lse is not None)
        workspace = torch.empty(size, dtype=torch.uint8, device=self._device)
        _cuda.tables(
            given,
            factors=cuda_launch.pointer(self._factors_of(channel)),
            rows=_tables(rows),
            columns=_cuda.Tables() if columns is None else _tables(columns),
            table_columns=table_columns,
            workspace=cuda_launch.pointer(workspace),
            stream=stream_of(self._device),
        )

    def gradients_(
        self,
        block: Block,
        channels: Sequence[Channel],
        row_moments: Tensor | None,
        column_moments: Tensor | None,
    ) -> None:
        held: list[Tensor | None] = []
        given = self._block(block)
        arguments = [self._channel(f, c, held) for f, c in enumerate(channels)]
        strides = [c.columns.by_level["lse"].stride(0) for c in channels if c.columns]  # type: ignore[union-attr]

        def make(row_parts: Tensor | None) -> Any:
            return _cuda.GradientArgs(
                gradient=gradient_of(block),
                channels=arguments,
                column_stride=strides[0] if strides else 0,
                row_moments=cuda_launch.pointer(row_parts),
                column_moments=cuda_launch.pointer(column_moments),
            )

        r, m = block.shape
        tiles = -(-m // _cuda.gradient_columns(given, make(None)))
        row_parts = None if row_moments is None else self.empty(tiles, r)
        level_parts = [
            None if c.moments is None else self.empty(tiles, *c.moments.shape) for c in channels
        ]
        for argument, part in zip(arguments, level_parts, strict=True):
            argument.moments = cuda_launch.pointer(part)
        _cuda.gradients(given, make(row_parts), stream_of(self._device))
        for part, moments in zip(
            (row_parts, *level_parts), (row_moments, *(c.moments for c in channels)), strict=True
        ):
            if part is not None and moments is not None:
                torch.sum(part, dim=0, out=moments)

    def softplus(
        self,
        block: Block,
        channel: int,
        thresholds: Tensor,
        weights: Tensor | None,
        value: Tensor,
        slope: Tensor,
    ) -> None:
        given = self._block(block)
        splits = _cuda.softplus_splits(block.shape[1])
        parts = self.empty(2, splits, *value.shape)
        _cuda.softplus(
            given,
            factors=cuda_launch.pointer(self._factors_of(channel)),
            thresholds=cuda_launch.pointer(thresholds),
            threshold_stride=thresholds.stride(0) if thresholds.shape[0] > 1 else 0,
            weights=cuda_launch.pointer(weights),
            gradient=_cuda.Gradient() if weights is None else gradient_of(block),
            value=cuda_launch.pointer(parts[0]),
            slope=cuda_launch.pointer(parts[1]),
            stream=stream_of(self._device),
        )
        torch.sum(parts[0], dim=0, out=value)
        torch.sum(parts[1], dim=0, out=slope)

    def _table_workspace(self, r: int, m: int, table_columns: int, full: bool) -> int:
        return int(
            _cuda.table_workspace(
                dtype=dtype_of(self._scale),
                rows=r,
                columns=m,
                max_level=self._batch.levels.max_level,
                table_columns=table_columns,
                all_tables=full,
            )
        )

    def _block(self, block: Block) -> Any:
        s, circle = block.similarities, self._batch.circle
        assert s is not None
        r, m = block.shape
        return _cuda.Block(
            dtype=dtype_of(s),
            similarities=cuda_launch.pointer(s),
            rows=r,
            columns=m,
            row_stride=s.stride(0),
            first_row=block.start,
            scale=cuda_launch.pointer(self._scale),
            row_factors=cuda_launch.pointer(block.row_factors),
            column_factors=cuda_launch.pointer(block.column_factors),
            circle=circle is not None,
            circle_margin=0.0 if circle is None else circle,
            ceilings=self._ceilings_at(block),
            levels=self._levels.at(block.start, block.start + r),
        )

    def _ceilings_at(self, block: Block) -> Any:
        given = self._ceilings.at(block)._asdict()
        addresses = {name: cuda_launch.pointer(tensor) for name, tensor in given.items()}
        return _cuda.Ceilings(**addresses, kept=self._kept)

    def _channel(self, f: int, c: Channel, held: list[Tensor | None]) -> Any:
        def address(tensor: Tensor | None) -> int:
            held.append(None if tensor is None else tensor.contiguous())
            return cuda_launch.pointer(held[-1])

        columns = _cuda.TableGradients()
        if c.columns is not None:
            laid = {name: address(t) for name, t in c.columns.by_level.items()}
            columns = _cuda.TableGradients(**laid)
        return _cuda.Channel(
            factors=cuda_launch.pointer(self._factors_of(f)),
            rows=_table_gradients(c.tables, c.d_tables, address),
            columns=columns,
            thresholds=address(c.thresholds),
            d_softplus=address(c.d_tables.softplus),
        )


def _table_gradients(tables: TableSet, d_tables: TableGradientSet, address: Any) -> Any:
    return _cuda.TableGradients(
        lse=address(tables.lse),
        d_lse=address(d_tables.lse),
        neg_lse=address(tables.neg_lse),
        d_neg_lse=address(d_tables.neg_lse),
        d_total=address(d_tables.total),
    )


def _tables(out: TableSet) -> Any:
    names = ("lse", "total", "count", *_FULL_TABLES)
    return _cuda.Tables(**{name: cuda_launch.pointer(getattr(out, name)) for name in names})


def gradient_of(block: Block) -> Any:
    g = block.gradient
    assert g is not None
    return _cuda.Gradient(
        dtype=dtype_of(g),
        values=cuda_launch.pointer(g),
        row_stride=g.stride(0),
        unit=cuda_launch.pointer(block.unit),
    )
