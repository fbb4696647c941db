"""Row blocks: what the passes of a backend are given, and the iteration over the blocks of a batch.

Several prefixes of the features (Matryoshka) cost the products of the longest one: the similarities
of a prefix are those of the one before plus the product of the features between.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from . import column_tables
from .batch import Batch
from .operands import Operand, RowPasses
from .table_sets import TableGradientSet, TableSet

DEFAULT_WORKSPACE = 64 * 2**20  # bytes; what is kept of the similarities, or for the next step
SMALLEST_DEFAULT_BLOCK = 1024  # rows; each product packs all candidates anew
LARGE_DEFAULT_BLOCK = 2048  # rows; with fewer most products on a CPU are slower ...
LARGEST_WORKSPACE = 256 * 2**20  # ... but no more bytes for these
_KEPT_MULTIPLE = 8  # columns: a multiple of every backend's `row_multiple`
_PAIRS = 4096  # at a time: each is read with all its features
_LARGEST_UNIT = 2.0**14  # what the largest gradient in float16 is brought to, of 65504


class Block(NamedTuple):
    """A row block in one prefix: where its similarities come from, and what they are to be
    multiplied by.
    """

    similarities: Tensor | None  # [R, M + Q]; None: the passes compute the product
    gradient: Tensor | None  # [R, M + Q], out; may be the memory of the similarities
    queries: Tensor  # [R, D], the rows of the product
    candidates: Tensor  # [M + Q, D]; without rows where they were read and given back
    start: int  # its first row in the batch
    prefix: int
    row_factors: Tensor | None  # [R]
    column_factors: Tensor | None  # [M + Q]
    unit: Tensor | None  # the gradient is written times this, to fit into float16
    # [R], out: sums of gradient times similarity, where gradients are rounded for the products.
    dots: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """R, M + Q."""
        if self.similarities is not None:
            rows, columns = self.similarities.shape
            return rows, columns
        return self.queries.shape[0], self.candidates.shape[0]

    def at(self, row: Tensor, column: Tensor, dtype: torch.dtype) -> Tensor:
        """The similarities of single pairs, without their factors."""
        if self.similarities is not None:
            return self.similarities[row, column]
        pieces = zip(row.flatten().split(_PAIRS), column.flatten().split(_PAIRS), strict=True)
        dots = [(self.queries[i].to(dtype) * self.candidates[j]).sum(dim=1) for i, j in pieces]
        return torch.cat(dots).view_as(row)


@dataclass
class ColumnTables:
    """The column tables of one view, and their gradients."""

    tables: TableSet  # [M, L + 1]
    d_tables: TableGradientSet
    columns: int  # M + Q

    @functools.cached_property
    def by_level(self) -> dict[str, Tensor | None]:
        """The same as `column_tables.by_level` lays them out, for the backends that read it so."""
        return column_tables.by_level(self.tables, self.d_tables, self.columns)


class Channel(NamedTuple):
    """The tables of one view of a block, and their gradients."""

    tables: TableSet  # [R, L + 1]
    d_tables: TableGradientSet
    columns: ColumnTables | None = None
    thresholds: Tensor | None = None  # [R, L + 1], of the softplus sums
    moments: Tensor | None = None  # [R, L + 1], out: sums of gradient times logit over the level


class Passes(RowPasses, Protocol):
    """The fused passes of a backend over a row block."""

    #: Rows of one row of `column_moments`.
    moment_rows: int
    #: Whether the passes compute the products themselves.
    fused: bool
    #: Whether gradients are written over the similarities even in a narrower dtype.
    overwrites: bool
    #: Whether the products of a block may go tile by tile, as the host can look at them.
    skips_tiles: bool
    #: Rows of a block are a multiple of so many columns apart.
    row_multiple: int
    #: What the column tables of a block need besides, for each of its rows and columns.
    column_table_bytes: float
    #: Bytes of a row block's pairs where the user sets no bound.
    block_bytes: int
    #: Rows of a block that are wanted then, even if they take more.
    wanted_rows: int

    def workspace(self, *shape: int) -> AbstractContextManager[Tensor]:
        """Memory of the accumulation dtype for the row blocks of one sweep."""

    def lent(self, *shape: int) -> Tensor:
        """Such memory for two sweeps, for as long as the tensor lives."""

    def tables(self, block: Block, channel: int, rows: TableSet, columns: TableSet | None) -> None:
        """Fills the tables `[R, L + 1]` of the block's rows, and those `[M, L + 1]` of its columns
        over these rows.
        """

    def gradients_(
        self,
        block: Block,
        channels: Sequence[Channel],
        row_moments: Tensor | None,
        column_moments: Tensor | None,
    ) -> None:
        """Writes the gradient of the product, per unit of scale.

        Moments are sums of gradient times logit, `[R]` and `[ceil(R / moment_rows), M + Q]`.
        """

    def softplus(
        self,
        block: Block,
        channel: int,
        thresholds: Tensor,
        weights: Tensor | None,
        value: Tensor,
        slope: Tensor,
    ) -> None:
        """Sums over the pairs of a level of softplus(x) and sigmoid(x), `[R, L + 1]`.

        x is `z - threshold` at level 0 and `threshold - z` above; thresholds `[R, L + 1]` or
        `[1, L + 1]`. With `weights` `[L + 1]` the gradient of the product, per unit of scale, is
        written; without, level 0 is left out.
        """

    def multi_level_nce(
        self, lse: Tensor, count: Tensor, level_weights: Tensor, positives: str, negatives: str
    ) -> tuple[Tensor, Tensor]:
        """The multi-level NCE of rows `[R]`, summed over the views, and its gradient in lse.

        Tables `[V, R, L + 1]`, whose rows lie side by side, and weights `[V, L]`; see
        `heads.multi_level_nce`.
        """


def _default_rows(row_bytes: float, size: int, wanted: int) -> int:
    """The most rows of a block where the user sets no bound: `size` bytes of them, but those that
    are wanted.
    """
    wanted = torch.sym_min(wanted, LARGEST_WORKSPACE // row_bytes)
    rows: int = torch.sym_max(torch.sym_max(size // row_bytes, wanted), SMALLEST_DEFAULT_BLOCK)
    return rows


def block_rows(
    num_queries: int,
    row_bytes: float,
    workspace_mb: float,
    size: int = DEFAULT_WORKSPACE,
    wanted: int = SMALLEST_DEFAULT_BLOCK,
) -> int:
    """R: the most rows of a block that the workspace holds, spread evenly over the blocks.

    `size`: its bytes where `workspace_mb` is 0. `wanted`: rows that it holds then anyway, up to
    `LARGEST_WORKSPACE`.

    Raises:
        ValueError: the workspace does not hold a single row.
    """
    if row_bytes == 0:
        return num_queries
    if workspace_mb > 0:
        most = int(workspace_mb * 2**20 / row_bytes)
        if most < 1:
            raise ValueError(
                f"workspace_mb must hold at least the logits of one row, "
                f"{row_bytes / 2**20:.3g} MiB, got {workspace_mb:.3g}"
            )
    else:
        most = int(_default_rows(row_bytes, size, wanted))
    blocks = -(-num_queries // most)
    return -(-num_queries // blocks)


def kept_shape(batch: Batch) -> tuple[int, int, int]:
    """Of the memory that the row blocks of both sweeps of a loss lie in, `[P, rows, >= M + Q]`: as
    many rows as fit into a workspace.
    """
    prefixes = len(batch.prefixes)
    columns = -(-batch.num_columns // _KEPT_MULTIPLE) * _KEPT_MULTIPLE
    row = prefixes * columns * batch.dtype.itemsize
    most = int(batch.workspace_mb * 2**20) // row if row > 0 else 0
    if batch.workspace_mb == 0 and row > 0:
        on_cpu = batch.queries.device.type == "cpu"
        wanted = LARGE_DEFAULT_BLOCK if on_cpu else SMALLEST_DEFAULT_BLOCK
        most = _default_rows(row, DEFAULT_WORKSPACE, wanted)
    return prefixes, torch.sym_min(batch.queries.shape[0], most), columns


@dataclass
class Rows:
    """A row block: its queries, and its similarities in every prefix."""

    start: int
    stop: int
    queries: Operand
    blocks: list[Block]


class RowBlocks:
    """Iterates over the row blocks; the next one uses the workspace again.

    `bound`: of the gradients of the tables, where gradients will be written. `columns`: whether
    column tables will be computed. `besides`: bytes of every pair of a block that the caller needs.
    `last_first`: from the last block to the first. `kept` (`kept_shape`): memory for the blocks of
    two sweeps. A first one without gradients, `last_first`, leaves the similarities of the first
    blocks there; one with gradients writes these over them.
    """

    def __init__(
        self,
        batch: Batch,
        passes: Passes,
        bound: Tensor | None = None,
        columns: bool = False,
        besides: int = 0,
        last_first: bool = False,
        kept: Tensor | None = None,
    ) -> None:
        self.batch, self.passes, self._besides = batch, passes, besides
        self._last_first, self._kept = last_first, kept
        self._columns, self._with_gradients, self._bound = columns, bound is not None, bound
        self._queries = self._operand(batch.queries) if passes.factored else None
        self._lent: Tensor | None = None

    def _operand(self, rows: Tensor, unit: Tensor | None = None) -> Operand:
        batch, passes = self.batch, self.passes
        given = rows.to(passes.operand_dtype)
        return Operand.prepare(rows, given, batch.prefixes, batch.normalize, passes, unit)

    @property
    def _copied(self) -> bool:
        """Whether the queries of a block are brought to length 1 in a copy."""
        batch, passes = self.batch, self.passes
        copied = batch.normalize and batch.queries.dtype == passes.operand_dtype
        return copied and not passes.factored and len(batch.prefixes) == 1

    @functools.cached_property
    def _unit_queries(self) -> Tensor | None:
        """Memory for that copy."""
        if not self._copied:
            return None
        return self.passes.empty(self._block_rows, self.batch.prefixes[-1])

    def lend(self, d_queries: Tensor) -> None:
        """Such memory `[N, D]` for all blocks: the caller writes the gradient of a block over it,
        after the last product with its queries.
        """
        if (
            self._copied
            and self.passes.recomputes_unit
            and d_queries.shape[1] == self.batch.prefixes[-1]
        ):
            self._lent = d_queries

    def _query_block(self, start: int, stop: int) -> Operand:
        if self._queries is not None:
            return self._queries.rows(start, stop)
        given = self.batch.queries[start:stop]
        if self._lent is None:
            return self._operand(given, self._unit_queries)
        lent = self._lent[start:stop]
        operand = self._operand(given, lent)
        taken = operand.values.data_ptr() == lent.data_ptr()  # not where rows are copied anyway
        return replace(operand, given=given) if taken else operand

    @functools.cached_property
    def candidates(self) -> Operand:
        """Of all columns."""
        batch, passes = self.batch, self.passes
        given = batch.all_candidates(passes.operand_dtype)
        return Operand.prepare(batch.candidates, given, batch.prefixes, batch.normalize, passes)

    @property
    def with_dots(self) -> bool:
        """Whether the passes give the gradient of the scale: they round that of the product."""
        rounds = self.passes.overwrites and self.passes.operand_dtype != self.batch.dtype
        return self._with_gradients and rounds

    @functools.cached_property
    def negligible(self) -> Tensor | None:
        """Below this a gradient may be left out of the products; None: all are computed."""
        if self._bound is None or self.batch.skip_below == 0 or not self.passes.skips_tiles:
            return None
        return self.batch.skip_below * self._bound

    @functools.cached_property
    def unit(self) -> Tensor | None:
        """What gradients are written times, to fit into float16."""
        if self.passes.operand_dtype != torch.float16 or self._bound is None:
            return None
        largest = self._bound * self.batch.channels
        if self.batch.factors is not None:
            largest = largest * self.batch.factors.abs().amax()
        for operand in (self._queries, self.candidates):
            if operand is not None and operand.inverse is not None:
                # A row of length 0 would take the digits of all others.
                there = operand.inverse < 1e10
                largest = largest * torch.where(there, operand.inverse, 0.0).amax()
        unit = _LARGEST_UNIT * torch.exp2(-torch.ceil(torch.log2(largest)))
        return torch.where(largest > 0, unit, 1.0).reshape(1)

    @functools.cached_property
    def _gradients_apart(self) -> bool:
        """Whether gradients are not written over the similarities."""
        passes = self.passes
        return passes.fused or (passes.operand_dtype != self.batch.dtype and not passes.overwrites)

    @functools.cached_property
    def _block_rows(self) -> int:
        """R."""
        batch, passes = self.batch, self.passes
        both = self._kept is not None  # two sweeps have the same blocks
        prefixes = len(batch.prefixes)
        pair_bytes = 0.0 if passes.fused else prefixes * batch.dtype.itemsize
        if self._gradients_apart and (self._with_gradients or both):
            pair_bytes += prefixes * passes.operand_dtype.itemsize
        pair_bytes += 4 * batch.levels.num_references + self._besides
        pair_bytes += passes.column_table_bytes if self._columns or both else 0
        n, row_bytes = batch.queries.shape[0], batch.num_columns * pair_bytes
        rows = block_rows(n, row_bytes, batch.workspace_mb, passes.block_bytes, passes.wanted_rows)
        if self._kept is None or rows <= self._kept.shape[1]:
            return rows
        return -(-n // -(-n // self._kept.shape[1]))

    def __iter__(self) -> Iterator[Rows]:
        batch, passes, kept = self.batch, self.passes, self._kept
        n, columns, prefixes = batch.queries.shape[0], batch.num_columns, len(batch.prefixes)
        rows = self._block_rows
        apart = -(-columns // passes.row_multiple) * passes.row_multiple
        shape = prefixes, rows, apart
        workspace: AbstractContextManager[Tensor | None] = nullcontext(kept)
        if kept is None and not passes.fused:
            workspace = passes.workspace(*shape)
        places = 1 if kept is None else kept.shape[1] // rows  # for blocks in the memory
        blocks = range(-(-n // rows))
        with workspace as memory:
            gradient = None
            if self._with_gradients and self._gradients_apart:
                gradient = batch.queries.new_empty(shape, dtype=passes.operand_dtype)
            for i in reversed(blocks) if self._last_first else blocks:
                start, stop = i * rows, min((i + 1) * rows, n)
                first = i % places * rows
                here = slice(first, first + stop - start)
                known = kept is not None and self._with_gradients and i < places
                yield self._block(
                    start,
                    stop,
                    None if memory is None else memory[:, here, :columns],
                    None if gradient is None else gradient[:, : stop - start, :columns],
                    known,
                )

    def _products(self, queries: Tensor, similarities: Tensor) -> None:
        """Fills the similarities `[P, R, M + Q]` of a block, those with the own candidates before
        the others arrive.
        """
        arrival, ready = self.batch.arrival, slice(0, 0)
        if arrival is not None and arrival.on_the_way and arrival.ready.stop > arrival.ready.start:
            ready = arrival.ready
            own = self._operand(arrival.own).values
            self._multiply(queries, own, similarities[..., ready])
        for columns in (slice(0, ready.start), slice(ready.stop, None)):
            values = self.candidates.values[columns]
            if values.shape[0] > 0:
                self._multiply(queries, values, similarities[..., columns])

    def _multiply(self, queries: Tensor, candidates: Tensor, similarities: Tensor) -> None:
        """Fills the similarities `[P, R, columns]` of some of the columns."""
        first = 0
        for p, last in enumerate(self.batch.prefixes):
            a, b = queries[:, first:last], candidates[:, first:last].t()
            self.passes.product_(similarities[p], a, b, add=similarities[p - 1] if p > 0 else None)
            first = last

    def _block(
        self,
        start: int,
        stop: int,
        similarities: Tensor | None,
        gradient: Tensor | None,
        known: bool,
    ) -> Rows:
        """`similarities` `[P, R, M + Q]` are computed, unless they are known; without `gradient` it
        is written over them.
        """
        batch = self.batch
        queries = self._query_block(start, stop)
        if similarities is not None:
            if not known:
                self._products(queries.values, similarities)
            if self._with_gradients and gradient is None:
                over = similarities.view(self.passes.operand_dtype)
                gradient = over[..., : batch.num_columns]
        candidates = self.candidates
        blocks: list[Block] = []
        for p, last in enumerate(batch.prefixes):
            s = None if similarities is None else similarities[p]
            dots = self.passes.empty(stop - start) if self.with_dots else None
            blocks.append(
                Block(
                    s,
                    None if gradient is None else gradient[p],
                    queries.values[:, :last],
                    candidates.values[:, :last],
                    start,
                    p,
                    None if queries.inverse is None else queries.inverse[p],
                    None if candidates.inverse is None else candidates.inverse[p],
                    self.unit,
                    dots,
                )
            )
        return Rows(start, stop, queries, blocks)
