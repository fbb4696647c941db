"""What a rank computes with the columns of all ranks: the contract of `backends`, over the group.

Tables and gradients of the own rows; tables and gradients of the own columns over the rows of all
ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends, column_tables
from ..batch import Batch
from ..reference import EMPTY
from ..table_sets import COLUMN_TABLES, Gradients, Needs, TableGradientSet, TableSet
from ..thresholds import thresholds
from . import collectives
from .columns import Gathered, Ring, shards_of
from .shards import Shards, Span

Columns = Gathered | Ring
_EMPTY = {"lse": EMPTY, "neg_lse": EMPTY, "highest": EMPTY, "lowest": -EMPTY}


def _empty_tables(batch: Batch, rows: int, full: bool, softplus: bool = False) -> TableSet:
    """Of rows that meet no column."""
    shape = (batch.views, rows, batch.levels.max_level + 1)
    tables = TableSet.empty(
        *shape, dtype=batch.dtype, device=batch.queries.device, full=full, softplus=softplus
    )
    for name, table in tables._asdict().items():
        if table is not None:
            table.fill_(-1 if name.endswith("_at") else _EMPTY.get(name, 0))
    return tables


def _is_empty(batch: Batch) -> bool:
    return batch.queries.shape[0] == 0 or batch.num_columns == 0


def _local_tables(
    batch: Batch, backend: str, full: bool, columns: bool, softplus: str
) -> tuple[TableSet, TableSet | None]:
    if not _is_empty(batch):
        rows, of_columns, _ = backends.tables(batch, backend, full, columns, softplus)
        return rows, of_columns
    rows = _empty_tables(batch, batch.queries.shape[0], full, bool(softplus))
    return rows, _empty_tables(batch, batch.candidates.shape[0], full) if columns else None


def _renumbered(tables: TableSet, number: Any) -> TableSet:
    """With other numbers for the places of the extremes."""
    if tables.highest_at is None or tables.lowest_at is None:
        return tables
    return tables._replace(highest_at=number(tables.highest_at), lowest_at=number(tables.lowest_at))


def tables(
    given: Columns, batch: Batch, backend: str, full: bool, columns: bool, softplus: str
) -> tuple[TableSet, TableSet | None]:
    """`backends.tables`, for the own rows and the own columns."""
    if softplus and isinstance(given, Gathered):
        # The sums need the whole rows: one product for both.
        return _local_tables(given.whole(), backend, full, False, softplus)
    merged: TableSet | None = None
    by_column: dict[int, TableSet] = {}
    for piece in given.pieces():
        rows, of_columns = _local_tables(piece.batch, backend, full, columns, "")
        rows = _renumbered(rows, piece.span.outer)
        if merged is None:
            merged = column_tables.widened(rows)
        else:
            merged = column_tables.merge(merged, rows)
        if of_columns is not None:
            by_column[piece.span.ranks.start] = of_columns
    assert merged is not None
    of_rows = column_tables.narrowed(merged, batch.dtype)
    if softplus:
        of_rows = _with_softplus(given, of_rows, backend, softplus)
    if not columns:
        return of_rows, None
    parts = [by_column[first] for first in sorted(by_column)]
    stacked = (None if ts[0] is None else torch.cat(ts, dim=1) for ts in zip(*parts, strict=True))
    return of_rows, _merged_columns(TableSet(*stacked), shards_of(batch))  # type: ignore[arg-type]


def _with_softplus(given: Columns, rows: TableSet, backend: str, negatives: str) -> TableSet:
    """Another round, now that the thresholds are known."""
    against = thresholds(rows.lse, negatives)
    sums, slopes = torch.zeros_like(rows.lse), torch.zeros_like(rows.lse)
    for piece in given.pieces():
        if not _is_empty(piece.batch):
            value, slope = backends.softplus(piece.batch, backend, against)
            sums += value
            slopes += slope
    return rows._replace(softplus=sums, slope=slopes)


def _merged_columns(tables: TableSet, shards: Shards) -> TableSet:
    """From the tables of all columns over the own rows to those of the own ones over all rows."""
    tables = _renumbered(tables, lambda at: (at + shards.first_row).where(at >= 0, at))
    fields = [x.transpose(0, 1) for x in tables if x is not None]  # [M, V, L + 1]
    packed = collectives.pack(fields, fields[0].shape[0])
    own = shards.columns[shards.rank]
    received = collectives.to_owners(packed, shards.columns, own, shards.group)
    merged: TableSet | None = None
    for part in received:
        columns = iter(collectives.unpack(part, fields))
        of_rank = TableSet(
            *(None if x is None else next(columns).transpose(0, 1).contiguous() for x in tables)  # type: ignore[arg-type]
        )
        if merged is None:
            merged = column_tables.widened(of_rank)
        else:
            merged = column_tables.merge(merged, of_rank)
    assert merged is not None
    return column_tables.narrowed(merged, tables.lse.dtype)


def gradients(
    given: Columns,
    batch: Batch,
    backend: str,
    rows: TableSet,
    d_rows: TableGradientSet,
    columns: TableSet | None,
    d_columns: TableGradientSet | None,
    softplus: str,
    needs: Needs,
) -> Gradients:
    """`backends.gradients`, of the sum of what all ranks do with their tables."""
    if columns is not None and d_columns is not None:
        columns, d_columns = _of_all_columns(columns, d_columns, shards_of(batch))
    sums = _Sums(given, batch, needs)
    for piece in given.pieces_back():
        span = piece.span
        of_piece: TableSet | None = None
        d_of_piece: TableGradientSet | None = None
        here = span.candidates
        if columns is not None and d_columns is not None and here.stop > here.start:
            of_piece = TableSet(*_rows(columns, here))  # type: ignore[arg-type]
            d_of_piece = TableGradientSet(*_rows(d_columns, here))
        arguments = _renumbered(rows, span.inner), d_rows, of_piece, d_of_piece, softplus, needs
        local = piece.batch._replace(d_candidates=sums.memory(span))
        sums.add(span, None if _is_empty(local) else backends.gradients(local, backend, *arguments))
    return sums.finish()


def _rows(tables: TableSet | TableGradientSet, rows: slice) -> list[Tensor | None]:
    return [None if x is None else x[:, rows].contiguous() for x in tables]


def _of_all_columns(
    tables: TableSet, d_tables: TableGradientSet, shards: Shards
) -> tuple[TableSet, TableGradientSet]:
    """The own columns' tables to everybody, with rows numbered as the own ones; those that the
    gradients need.
    """
    needed = {
        "lse": tables.lse,
        "neg_lse": tables.neg_lse if d_tables.neg_lse is not None else None,
        "highest_at": tables.highest_at if d_tables.highest is not None else None,
        "lowest_at": tables.lowest_at if d_tables.lowest is not None else None,
    }
    given = (*(needed.get(name) for name in COLUMN_TABLES), *d_tables)
    fields = [x.transpose(0, 1) for x in given if x is not None]
    own = shards.columns[shards.rank]
    everyone = collectives.gather(
        collectives.pack(fields, own), shards.columns, shards.rank, shards.group
    )
    parts = iter(collectives.unpack(everyone, fields))
    whole = [None if x is None else next(parts).transpose(0, 1).contiguous() for x in given]
    split = len(COLUMN_TABLES)
    # Rows of other ranks are below 0 or above the last one, and so in no block.
    of_all = _renumbered(TableSet(*whole[:split]), lambda at: at - shards.first_row)  # type: ignore[arg-type]
    return of_all, TableGradientSet(*whole[split:])


class _Sums:
    """Gradients, added up over the pieces."""

    def __init__(self, given: Columns, batch: Batch, needs: Needs) -> None:
        zeros = batch.scale.new_zeros
        self._batch, self._needs = batch, needs
        self._candidates = given.gradients() if needs.candidates else None
        self._queries = zeros(batch.queries.shape if needs.queries else (0,))
        self._scale = zeros((), dtype=torch.float64)
        self._factors = zeros(
            batch.factors.shape if needs.factors and batch.factors is not None else (0,)
        )

    def memory(self, span: Span) -> Tensor | None:
        return None if self._candidates is None else self._candidates.memory(span)

    def add(self, span: Span, part: Gradients | None) -> None:
        """None: of no pair."""
        if part is not None:
            self._scale += part.scale.double()
            for so_far, more in ((self._queries, part.queries), (self._factors, part.factors)):
                if so_far.numel() > 0:
                    so_far += more
        if self._candidates is not None:
            columns = span.candidates.stop - span.candidates.start
            zeros = self._batch.scale.new_zeros
            d = zeros(columns, self._batch.candidates.shape[1]) if part is None else part.candidates
            self._candidates.add(span, d)

    def finish(self) -> Gradients:
        d_candidates = self._scale.new_empty(0)
        if self._candidates is not None:
            d_candidates = self._candidates.finish()
        scale = self._scale.to(self._batch.dtype)
        return Gradients(self._queries, d_candidates, scale, self._factors)


def sigmoid(
    given: Columns, batch: Batch, backend: str, bias: Tensor, weights: Tensor, needs: Needs
) -> tuple[Tensor, Gradients, Tensor]:
    """`backends.sigmoid`: the pairs are independent, and so are the pieces."""
    losses = batch.scale.new_zeros(batch.queries.shape[0])
    d_bias = torch.zeros_like(bias)
    sums = _Sums(given, batch, needs)
    for piece in given.pieces():
        local = piece.batch._replace(d_candidates=sums.memory(piece.span))
        if _is_empty(local):
            sums.add(piece.span, None)
            continue
        part = backends.sigmoid(local, backend, bias, weights, needs)
        losses = losses + part.losses
        d_bias = d_bias + part.d_bias
        sums.add(piece.span, part.gradients)
    return losses, sums.finish(), d_bias


def multi_level_nce(
    given: Gathered,
    batch: Batch,
    backend: str,
    level_weights: Tensor,
    positives: str,
    negatives: str,
    needs: Needs,
) -> tuple[Tensor, TableSet, Gradients, Any]:
    """`backends.multi_level_nce`; the candidates' gradient is on its way, or None."""
    whole = given.whole()
    pending = given.gradients() if needs.candidates else None
    if pending is not None:
        whole = whole._replace(d_candidates=pending.memory_of_all())
    if batch.queries.shape[0] > 0:
        losses, rows, d = backends.multi_level_nce(
            whole, backend, level_weights, positives, negatives, needs
        )
    else:
        losses, rows, d = _no_rows(whole)
    if pending is not None:
        pending.start(d.candidates)
    return losses, rows, d, pending


def _no_rows(batch: Batch) -> tuple[Tensor, TableSet, Gradients]:
    """Of a rank that has only columns."""
    if batch.arrival is not None:
        batch.arrival.wait()
    zeros = batch.scale.new_zeros
    of_candidates = zeros(0) if batch.d_candidates is None else batch.d_candidates.zero_()
    of_factors = zeros(() if batch.factors is None else batch.factors.shape)
    d = Gradients(zeros(batch.queries.shape), of_candidates, zeros(()), of_factors)
    return zeros(0), _empty_tables(batch, 0, full=False), d
