"""The fused passes on the CPU: the C++ of csrc/ behind the contract of `row_blocks.Passes`."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _native  # type: ignore[attr-defined]
from .batch import Batch
from .block_ceilings import Ceilings
from .cpu_levels import CpuLevels, narrow
from .levels import level_range_error
from .operands import NORM_EPS
from .products import product_
from .row_blocks import (
    DEFAULT_WORKSPACE,
    LARGE_DEFAULT_BLOCK,
    LARGEST_WORKSPACE,
    SMALLEST_DEFAULT_BLOCK,
    Block,
    Channel,
)
from .table_sets import TableSet

_WIDENED = 256  # rows at a time, which stay in the cache
_LARGE = 4 * 2**20  # bytes from which huge pages pay
_COLUMNS = 4096  # of a product of torch's: more would need more memory, and many more also time
_SMALL = 32  # rows, columns or depth: below, the tiles of our float32 product are half empty
# The last workspace, of 256 MiB at most: a fresh one costs up to a tenth of a step in page
# faults.
_kept: list[Tensor] = []
_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


def instruction_sets() -> list[str]:
    """The instruction sets that this build holds and this machine runs, the best first."""
    return list(_native.instruction_sets())


def _keep(memory: Tensor) -> None:
    if memory.nbytes <= LARGEST_WORKSPACE and not _kept:
        _kept.append(memory)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _pieces(size: int, most: int) -> Iterator[slice]:
    """Of nearly the same size, `most` at most."""
    pieces = -(-size // most)
    return (slice(i * size // pieces, (i + 1) * size // pieces) for i in range(pieces))


class CpuPasses:
    """The passes for one batch; holds the level data in the layout that the C++ reads."""

    moment_rows: int = _native.MOMENT_ROWS
    fused = False
    recomputes_unit = True
    overwrites = True
    skips_tiles = True
    row_multiple = 1
    column_table_bytes = 0.0
    block_bytes: int
    wanted_rows: int
    multiplies_bf16 = True

    def __init__(self, batch: Batch, instruction_set: str | None = None) -> None:
        self._set = instruction_set or instruction_sets()[0]
        self._batch = batch
        self._scale = float(batch.scale)
        self._dtype = self.operand_dtype = batch.dtype
        self._product = self._own_product()
        # Every block lays all candidates out anew: few large ones are faster but for our products
        # with AVX-512 or AMX, which are nearly as fast on half the rows.
        self.block_bytes, self.wanted_rows = DEFAULT_WORKSPACE, LARGE_DEFAULT_BLOCK
        if self._product is not None and self._set != "avx2":
            self.block_bytes, self.wanted_rows = DEFAULT_WORKSPACE // 2, SMALLEST_DEFAULT_BLOCK
        #: Rows of bfloat16 stay so where they are multiplied so: a unit row would be rounded.
        self.factored = self._product == "bf16"
        if self.factored:
            self.operand_dtype = batch.queries.dtype
        self._suffix = _SUFFIX[batch.dtype]
        self._levels = CpuLevels(batch.levels)
        self._factors = None if batch.factors is None else batch.factors.contiguous()
        self._ceilings = Ceilings(batch.levels, narrow)

    def _own_product(self) -> str | None:
        """What the C++ calls the dtype of the products that are its own; None: they are torch's."""
        narrow = self.multiplies_bf16 and self._batch.queries.dtype == torch.bfloat16
        if narrow and _native.bf16_product_is_faster(self._set):
            return "bf16"
        if self._dtype == torch.float32 and _native.float32_product_is_faster(self._set):
            return "f32"
        return None

    def product_(self, out: Tensor, a: Tensor, b: Tensor, add: Tensor | None = None) -> None:
        small = self._product == "f32" and min(*a.shape, b.shape[1]) < _SMALL
        if self._product is None or small:
            for columns in _pieces(out.shape[1], _COLUMNS):
                of_columns = None if add is None else add[:, columns]
                product_(out[:, columns], a, b[:, columns], of_columns)
            return
        if add is not None and add.data_ptr() != out.data_ptr():
            out.copy_(add)
        a, b = (x if 1 in x.stride() else x.contiguous() for x in (a, b))
        matrix = getattr(_native, f"Matrix_{self._product}")
        status = getattr(_native, f"product_{self._product}")(
            self._set,
            matrix(a.data_ptr(), *a.stride()),
            matrix(b.data_ptr(), *b.stride()),
            rows=a.shape[0],
            columns=b.shape[1],
            depth=a.shape[1],
            out=out.data_ptr(),
            out_stride=out.stride(0),
            add=add is not None,
            num_threads=torch.get_num_threads(),
        )
        if status != 0:
            raise MemoryError("no memory for the operands of a product, 16 MiB")

    def empty(self, *shape: int) -> Tensor:
        tensor = torch.empty(*shape, dtype=self._dtype)
        size = tensor.numel() * tensor.element_size()
        if size >= _LARGE:
            _native.advise_huge_pages(tensor.data_ptr(), size)
        return tensor

    def _free_memory(self, size: int) -> Tensor:
        """At least so many numbers."""
        try:
            memory = _kept.pop()
        except IndexError:
            memory = None
        if memory is None or memory.dtype != self._dtype or memory.numel() < size:
            with torch.inference_mode(False):  # a step outside inference mode may be next
                memory = self.empty(size)
        return memory

    @contextlib.contextmanager
    def workspace(self, *shape: int) -> Iterator[Tensor]:
        size = math.prod(shape)
        memory = self._free_memory(size)
        try:
            yield memory[:size].view(shape)
        finally:
            _keep(memory)

    def lent(self, *shape: int) -> Tensor:
        size = math.prod(shape)
        memory = self._free_memory(size)
        array = memory[:size].numpy()
        # The tensor holds the array, and nothing else does.
        weakref.finalize(array, _keep, memory).atexit = False
        return torch.from_numpy(array).view(shape)

    def norms(
        self, x: Tensor, prefixes: tuple[int, ...], norms: Tensor, unit: Tensor | None
    ) -> None:
        if x.dtype != self._dtype:
            for rows in _pieces(len(x), _WIDENED):
                part = torch.empty_like(norms[:, rows])
                self.norms(x[rows].to(self._dtype), prefixes, part, None)
                norms[:, rows] = part
            return
        getattr(_native, f"norms_{self._suffix}")(
            self._set,
            x=x.data_ptr(),
            row_stride=x.stride(0),
            rows=x.shape[0],
            prefixes=prefixes,
            norms=norms.data_ptr(),
            unit=_address(unit),
            num_threads=torch.get_num_threads(),
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
        if values.dtype != self._dtype:
            self._finish_given(d, values, prefixes, norms, along, dots)
            return
        getattr(_native, f"finish_{self._suffix}")(
            self._set,
            d=d.data_ptr(),
            d_stride=d.stride(0),
            values=values.data_ptr(),
            value_stride=values.stride(0),
            rows=d.shape[0],
            prefixes=prefixes,
            scale=self._scale,
            norms=_address(norms),
            along=_address(along),
            dots=dots.data_ptr(),
            num_threads=torch.get_num_threads(),
        )

    def _finish_given(
        self,
        d: Tensor,
        values: Tensor,
        prefixes: tuple[int, ...],
        norms: Tensor | None,
        along: Tensor | None,
        dots: Tensor,
    ) -> None:
        """`finish_` of rows as given, some at a time; their factors are in `d` already."""
        ones = torch.ones(_WIDENED, dtype=self._dtype)
        for rows in _pieces(len(values), _WIDENED):
            wide = values[rows].to(self._dtype)
            if norms is None:
                of_piece = None if along is None else along[:, rows].contiguous()
                self.finish_(d[rows], wide, prefixes, None, of_piece, dots[rows], None)
                continue
            norm = norms[rows, None]
            # A row of length 0 has no direction to take out.
            unit = torch.where(norm < NORM_EPS, 0.0, wide / norm)
            self.finish_(d[rows], unit, prefixes, ones, None, dots[rows], None)
            dots[rows] *= norms[rows]

    def tables(self, block: Block, channel: int, rows: TableSet, columns: TableSet | None) -> None:
        self._run(
            _native.tables,
            block,
            factors=self._factors_of(channel),
            rows=self._tables(rows),
            columns=None if columns is None else self._tables(columns),
            table_columns=0 if columns is None else columns.lse.shape[0],
        )

    def gradients_(
        self,
        block: Block,
        channels: Sequence[Channel],
        row_moments: Tensor | None,
        column_moments: Tensor | None,
    ) -> None:
        held: list[Tensor | None] = []  # while the C++ reads them

        def address(tensor: Tensor | None) -> int:
            held.append(None if tensor is None else tensor.contiguous())
            return _address(held[-1])

        arguments = []
        for f, c in enumerate(channels):
            rows = self._make("RowGradients")(
                lse=address(c.tables.lse),
                d_lse=address(c.d_tables.lse),
                neg_lse=address(c.tables.neg_lse),
                d_neg_lse=address(c.d_tables.neg_lse),
                d_total=address(c.d_tables.total),
                thresholds=address(c.thresholds),
                d_softplus=address(c.d_tables.softplus),
            )
            columns = self._make("ColumnGradients")()
            if c.columns is not None:
                laid = {name: address(t) for name, t in c.columns.by_level.items()}
                stride = c.columns.by_level["lse"].shape[1]  # type: ignore[union-attr]
                columns = self._make("ColumnGradients")(**laid, stride=stride)
            arguments.append(
                self._make("Channel")(
                    factors=self._factors_of(f),
                    rows=rows,
                    columns=columns,
                    moments=_address(c.moments),
                )
            )
        self._run(
            _native.gradients,
            block,
            channels=arguments,
            row_moments=_address(row_moments),
            column_moments=_address(column_moments),
        )

    def softplus(
        self,
        block: Block,
        channel: int,
        thresholds: Tensor,
        weights: Tensor | None,
        value: Tensor,
        slope: Tensor,
    ) -> None:
        arguments = self._make("Softplus")(
            factors=self._factors_of(channel),
            thresholds=_address(thresholds),
            threshold_stride=thresholds.stride(0) if thresholds.shape[0] > 1 else 0,
            weights=_address(weights),
            positives=weights is None,
            value=_address(value),
            slope=_address(slope),
        )
        self._run(_native.softplus, block, arguments=arguments)

    def multi_level_nce(
        self, lse: Tensor, count: Tensor, level_weights: Tensor, positives: str, negatives: str
    ) -> tuple[Tensor, Tensor]:
        views, rows, levels = lse.shape
        losses, d_lse = lse.new_empty(rows), lse.new_empty(lse.shape)
        weights = level_weights.to(lse.dtype).contiguous()
        getattr(_native, f"nce_head_{self._suffix}")(
            lse=lse.data_ptr(),
            count=count.data_ptr(),
            view_stride=lse.stride(0),
            views=views,
            rows=rows,
            levels=levels,
            weights=weights.data_ptr(),
            exact=positives == "exact",
            lower=negatives == "lower",
            losses=losses.data_ptr(),
            d_lse=d_lse.data_ptr(),
        )
        return losses, d_lse

    def _ceilings_at(self, block: Block) -> Any:
        query_ids, candidate_ids = self._ceilings.curated or (None, None)
        given = self._ceilings.at(block)._asdict()
        return self._make("Ceilings")(
            **{name: _address(tensor) for name, tensor in given.items()},
            query_ids=_address(query_ids),
            candidate_ids=_address(candidate_ids),
        )

    def _make(self, name: str) -> Any:
        return getattr(_native, f"{name}_{self._suffix}")

    def _factors_of(self, channel: int) -> int:
        return 0 if self._factors is None else self._factors[channel].data_ptr()

    def _tables(self, out: TableSet) -> Any:
        tables = out._replace(softplus=None, slope=None)._asdict()
        return self._make("Tables")(
            **{name: _address(t) for name, t in tables.items() if name not in ("softplus", "slope")}
        )

    def _block(self, block: Block) -> Any:
        s = block.similarities  # and the gradient is written over it
        rows, columns = block.shape
        circle = self._batch.circle
        return self._make("Block")(
            similarities=_address(s),
            rows=rows,
            columns=columns,
            row_stride=0 if s is None else s.stride(0),
            first_row=block.start,
            scale=self._scale,
            row_factors=_address(block.row_factors),
            column_factors=_address(block.column_factors),
            circle=circle is not None,
            circle_margin=0.0 if circle is None else circle,
            ceilings=self._ceilings_at(block),
            narrow=self.factored,
            dots=_address(block.dots),
            num_threads=torch.get_num_threads(),
        )

    def _run(self, function: Any, block: Block, **arguments: Any) -> None:
        levels = self._levels.at(block.start, block.start + block.shape[0])
        if function(self._set, self._block(block), levels, **arguments) != 0:
            raise level_range_error(self._batch.levels.max_level)
