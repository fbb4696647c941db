"""The sweep over row blocks: products by `torch.mm`, between them the fused passes of a backend.

A row block sees all columns, so its tables are final at once and its gradient can be written over
its similarities: S = Q_R C^T; tables; head; G over S; dQ_R = G C; dC += G^T Q_R. Three products,
and no more memory than one block. Column tables are final after the last block only: a loss that
needs them sweeps twice, four products.

Several prefixes of the features (Matryoshka) cost the products of the longest one: the similarities
of a prefix are those of the one before plus the product of the features between, and a feature's
gradient is a product with the sum of the G of all prefixes that have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from . import column_tables
from .batch import Batch
from .heads import multi_level_nce_gradient
from .operands import Operand, RowPasses
from .table_sets import Gradients, Needs, SigmoidResult, TableGradientSet, TableSet
from .thresholds import thresholds, through_thresholds

DEFAULT_WORKSPACE = 64 * 2**20  # bytes
SMALLEST_DEFAULT_BLOCK = 1024  # rows; each product packs all candidates anew


class Block(NamedTuple):
    """Similarities of a row block in one prefix, and what they are to be multiplied by."""

    similarities: Tensor  # [R, M + Q]
    start: int  # its first row in the batch
    prefix: int
    row_factors: Tensor | None  # [R]
    column_factors: Tensor | None  # [M + Q]


class ColumnTables(NamedTuple):
    """The column tables of one view, and their gradients."""

    tables: TableSet  # [M, L + 1]
    d_tables: TableGradientSet
    by_level: dict[str, Tensor | None]  # the same as `column_tables.by_level` lays them out


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

    def workspace(self, *shape: int) -> AbstractContextManager[Tensor]:
        """Memory of the accumulation dtype for the row blocks of one sweep."""

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
        """Writes the gradient, per unit of scale, over the similarities.

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
        `[1, L + 1]`. With `weights` `[L + 1]` the gradient, per unit of scale, is written over the
        similarities; without, level 0 is left out.
        """


def block_rows(num_queries: int, row_bytes: int, workspace_mb: float) -> int:
    """R: the most rows of a block that the workspace holds, spread evenly over the blocks.

    Raises:
        ValueError: the workspace does not hold a single row.
    """
    if workspace_mb > 0:
        most = int(workspace_mb * 2**20) // row_bytes
        if most < 1:
            raise ValueError(
                f"workspace_mb must hold at least the logits of one row, "
                f"{row_bytes / 2**20:.3g} MiB, got {workspace_mb:.3g}"
            )
    else:
        most = max(DEFAULT_WORKSPACE // row_bytes, SMALLEST_DEFAULT_BLOCK)
    blocks = -(-num_queries // most)
    return -(-num_queries // blocks)


@dataclass
class _Rows:
    """A row block: its queries, and its similarities in every prefix."""

    start: int
    stop: int
    queries: Operand
    blocks: list[Block]


class _Sweep:
    """Iterates over the row blocks; the next one uses the workspace again."""

    def __init__(self, batch: Batch, passes: Passes) -> None:
        self.batch, self.passes = batch, passes
        self.candidates = Operand.prepare(
            batch.candidates, batch.all_candidates(), batch.prefixes, batch.normalize, passes
        )

    def __iter__(self) -> Iterator[_Rows]:
        batch, passes, candidates = self.batch, self.passes, self.candidates
        n, columns, prefixes = batch.queries.shape[0], batch.num_columns, len(batch.prefixes)
        row_bytes = columns * (
            prefixes * candidates.values.element_size() + 4 * batch.levels.num_references
        )
        rows = block_rows(n, row_bytes, batch.workspace_mb)
        with passes.workspace(prefixes, rows, columns) as workspace:
            for start in range(0, n, rows):
                yield self._block(start, min(start + rows, n), workspace)

    def _block(self, start: int, stop: int, workspace: Tensor) -> _Rows:
        batch, passes, candidates = self.batch, self.passes, self.candidates
        x = batch.queries[start:stop]
        queries = Operand.prepare(x, x.to(batch.dtype), batch.prefixes, batch.normalize, passes)
        blocks: list[Block] = []
        first = 0
        for p, last in enumerate(batch.prefixes):
            s = workspace[p, : stop - start]
            a, b = queries.values[:, first:last], candidates.values[:, first:last].t()
            if p == 0:
                torch.mm(a, b, out=s)
            else:
                torch.addmm(blocks[-1].similarities, a, b, out=s)
            first = last
            row = None if queries.inverse is None else queries.inverse[p]
            column = None if candidates.inverse is None else candidates.inverse[p]
            blocks.append(Block(s, start, p, row, column))
        return _Rows(start, stop, queries, blocks)


def _empty_tables(batch: Batch, rows: int, full: bool, softplus: bool = False) -> TableSet:
    shape = (batch.views, rows, batch.levels.max_level + 1)
    return TableSet.empty(
        *shape, dtype=batch.dtype, device=batch.queries.device, full=full, softplus=softplus
    )


def sweep_tables(
    batch: Batch, passes: Passes, full: bool, columns: bool, softplus: str
) -> tuple[TableSet, TableSet | None]:
    """The tables of every row `[V, N, L + 1]` and column `[V, M, L + 1]`: one product.

    `softplus` names the negatives of the softplus sums; "": these are not wanted.
    """
    n, m = batch.queries.shape[0], batch.candidates.shape[0]
    rows = _empty_tables(batch, n, full, bool(softplus))
    merged: list[TableSet | None] = [None] * batch.views
    for item in _Sweep(batch, passes):
        for block in item.blocks:
            for f in range(batch.channels):
                view = block.prefix * batch.channels + f
                here = rows.of(view, item.start, item.stop)
                part = _empty_tables(batch, m, full).of(0) if columns else None
                passes.tables(block, f, here, part)
                if softplus:
                    assert here.softplus is not None
                    assert here.slope is not None
                    against = thresholds(here.lse, softplus)
                    passes.softplus(block, f, against, None, here.softplus, here.slope)
                if part is not None:
                    so_far = merged[view]
                    wide = column_tables.widened(part)
                    merged[view] = wide if so_far is None else column_tables.merge(so_far, part)
    if not columns:
        return rows, None
    views = [column_tables.narrowed(t, batch.dtype) for t in merged if t is not None]
    stacked = (None if ts[0] is None else torch.stack(ts) for ts in zip(*views, strict=True))
    return rows, TableSet(*stacked)  # type: ignore[arg-type]


class _Pairs(NamedTuple):
    """Single pairs of a block, `[.., L + 1]` each; those outside it have the gradient 0."""

    row: Tensor
    column: Tensor
    gradient: Tensor  # as it is written over the similarity
    moment: Tensor  # the gradient of `scale * s` times it


class _Gradients:
    """dQ, dC, and the gradients of the scale and the factors, collected block by block."""

    def __init__(self, sweep: _Sweep, needs: Needs) -> None:
        batch, passes = sweep.batch, sweep.passes
        self.batch, self.passes, self.candidates, self.needs = (
            batch, passes, sweep.candidates, needs,
        )  # fmt: skip
        self.d_queries = passes.empty(*(batch.queries.shape if needs.queries else (0,)))
        self.d_candidates = passes.empty(*(batch.candidates.shape if needs.candidates else (0,)))
        for d in (self.d_queries, self.d_candidates):
            if d.dim() == 2:
                d[:, batch.prefixes[-1] :] = 0.0  # features of no prefix
        self._d_scale = torch.zeros((), dtype=torch.float64, device=batch.queries.device)
        levels, factors = batch.levels.max_level + 1, batch.factors
        self._factor_moments = (
            self._d_scale.new_zeros(batch.channels, levels)
            if needs.factors and factors is not None
            else None
        )
        norms = batch.normalize and len(batch.prefixes) > 1
        self._column_moments = (
            self._d_scale.new_zeros(len(batch.prefixes), batch.num_columns)
            if norms and needs.candidates
            else None
        )
        self._with_row_moments = norms and needs.queries

    def add(self, item: _Rows, channels: Sequence[Sequence[Channel]]) -> None:
        """Turns the block's similarities into gradients and adds them up.

        `channels[p]`: those of prefix p. Their `moments` are replaced.
        """
        rows = item.stop - item.start
        row_moments = self.passes.empty(len(item.blocks), rows) if self._with_row_moments else None
        for block, given in zip(item.blocks, channels, strict=True):
            moments = [
                self.passes.empty(*c.tables.lse.shape) if self._factor_moments is not None else None
                for c in given
            ]
            column_moments = None
            if self._column_moments is not None:
                pieces = -(-rows // self.passes.moment_rows)
                column_moments = self.passes.empty(pieces, self.batch.num_columns)
            of_rows = None if row_moments is None else row_moments[block.prefix]
            full = [c._replace(moments=m) for c, m in zip(given, moments, strict=True)]
            # Read before the gradients are written over the similarities.
            extremes = [list(self._extremes(block, f, c)) for f, c in enumerate(full)]
            self.passes.gradients_(block, full, of_rows, column_moments)
            if column_moments is not None:
                assert self._column_moments is not None
                self._column_moments[block.prefix] += column_moments.sum(dim=0, dtype=torch.float64)
            for f, c in enumerate(full):
                for pairs in extremes[f]:
                    self._add_pairs(block, pairs, c, of_rows)
                if c.moments is not None:
                    assert self._factor_moments is not None
                    self._factor_moments[f] += c.moments.sum(dim=0, dtype=torch.float64)
        self._add_products(item, row_moments)

    def add_written(self, item: _Rows) -> None:
        """Adds up a block whose similarities are gradients already."""
        self._add_products(item, None)

    def _extremes(self, block: Block, channel: int, c: Channel) -> Iterator[_Pairs]:
        """The highest and the lowest logit of a level are single pairs."""
        rows, columns = block.similarities.shape[0], c.columns
        for name in ("highest", "lowest"):
            d = getattr(c.d_tables, name)
            if d is not None:
                at = getattr(c.tables, f"{name}_at")  # [R, L + 1], columns
                here = torch.arange(rows, device=at.device)[:, None].expand_as(at)
                yield self._pairs(block, channel, here, at.clamp_min(0), at >= 0, d)
            d = None if columns is None else getattr(columns.d_tables, name)
            if d is not None and columns is not None:
                at = getattr(columns.tables, f"{name}_at") - block.start  # [M, L + 1], rows
                there = (at >= 0) & (at < rows)
                here = torch.arange(at.shape[0], device=at.device)[:, None].expand_as(at)
                yield self._pairs(block, channel, at.clamp(0, rows - 1), here, there, d)

    def _pairs(
        self,
        block: Block,
        channel: int,
        row: Tensor,
        column: Tensor,
        there: Tensor,
        d: Tensor,
    ) -> _Pairs:
        """One pair for each level, `[.., L + 1]`; `there`: whether it is in the block."""
        batch = self.batch
        factor = torch.ones_like(d)
        if block.row_factors is not None and block.column_factors is not None:
            factor = block.row_factors[row] * block.column_factors[column]
        s = block.similarities[row, column] * factor
        if batch.circle is not None:
            positive = torch.arange(d.shape[1], device=d.device) > 0
            weight = torch.where(positive, 1 + batch.circle - s, s + batch.circle).clamp_min(0)
        elif batch.factors is not None:
            weight = batch.factors[channel].expand_as(d)
        else:
            weight = torch.ones_like(d)
        g = torch.where(there, d * weight, 0.0)
        return _Pairs(row, column, g * factor, g * (batch.scale * s))

    def _add_pairs(
        self, block: Block, pairs: _Pairs, c: Channel, row_moments: Tensor | None
    ) -> None:
        row, column, g, moment = pairs
        if c.moments is not None:
            levels = torch.arange(g.shape[1], device=g.device).expand_as(row)
            c.moments.index_put_((row, levels), moment, accumulate=True)
        if row_moments is not None:
            row_moments.index_put_((row,), moment, accumulate=True)
        if self._column_moments is not None:
            of_prefix = self._column_moments[block.prefix]
            of_prefix.index_put_((column,), moment.double(), accumulate=True)
        block.similarities.index_put_((row, column), g, accumulate=True)

    def _add_products(self, item: _Rows, row_moments: Tensor | None) -> None:
        needs, batch = self.needs, self.batch
        gradients = [block.similarities for block in item.blocks]
        for p in reversed(range(len(gradients) - 1)):
            gradients[p].add_(gradients[p + 1])
        queries, m = item.queries, batch.candidates.shape[0]
        d_queries = None
        if needs.queries:
            d_queries = self.d_queries[item.start : item.stop, : batch.prefixes[-1]]
        elif self._scale_from_rows:
            d_queries = self.passes.empty(*queries.values.shape)
        first = 0
        for g, last in zip(gradients, batch.prefixes, strict=True):
            here = slice(first, last)
            if d_queries is not None:
                torch.mm(g, self.candidates.values[:, here], out=d_queries[:, here])
            if needs.candidates:
                d_candidates = self.d_candidates[:, here]
                values = queries.values[:, here]
                d_candidates.addmm_(g[:, :m].t(), values, beta=float(item.start > 0))
            first = last
        if d_queries is not None:
            dots = queries.finish_(d_queries, batch.prefixes, row_moments, self.passes)
            if needs.scale:
                self._d_scale += dots.sum(dtype=torch.float64)

    @property
    def _scale_from_rows(self) -> bool:
        """Else the candidates' gradients give it: no further product, but none of the memory."""
        needs, memory = self.needs, self.batch.memory
        return needs.scale and (needs.queries or not needs.candidates or memory is not None)

    def finish(self) -> Gradients:
        batch, needs = self.batch, self.needs
        m = batch.candidates.shape[0]
        if needs.candidates:
            moments = self._column_moments
            dots = self.candidates.first(m).finish_(
                self.d_candidates[:, : batch.prefixes[-1]],
                batch.prefixes,
                None if moments is None else moments[:, :m].to(batch.dtype),
                self.passes,
            )
            if needs.scale and not self._scale_from_rows:
                self._d_scale += dots.sum(dtype=torch.float64)
        d_factors = batch.scale.new_empty(0)
        if self._factor_moments is not None and batch.factors is not None:
            d_factors = (self._factor_moments / batch.factors.double()).to(batch.dtype)
        return Gradients(
            self.d_queries, self.d_candidates, self._d_scale.to(batch.dtype), d_factors
        )


def sweep_gradients(
    batch: Batch,
    passes: Passes,
    rows: TableSet,
    d_rows: TableGradientSet,
    columns: TableSet | None,
    d_columns: TableGradientSet | None,
    softplus: str,
    needs: Needs,
) -> Gradients:
    """The gradients for given gradients of the tables: three products."""
    against = None
    if softplus and d_rows.softplus is not None:
        against = thresholds(rows.lse, softplus)
        d_rows = through_thresholds(rows, d_rows, softplus)
    sweep = _Sweep(batch, passes)
    gradients = _Gradients(sweep, needs)
    of_columns: list[ColumnTables | None] = [None] * batch.views
    if columns is not None and d_columns is not None:
        for v in range(batch.views):
            tables, d_tables = columns.of(v), d_columns.of(v)
            laid = column_tables.by_level(tables, d_tables, batch.num_columns)
            of_columns[v] = ColumnTables(tables, d_tables, laid)

    def channel(item: _Rows, view: int) -> Channel:
        here = (view, item.start, item.stop)
        of_view = None if against is None else against[view, item.start : item.stop].contiguous()
        return Channel(rows.of(*here), d_rows.of(*here), of_columns[view], of_view)

    for item in sweep:
        gradients.add(item, [[channel(item, v) for v in views] for views in _views(batch)])
    return gradients.finish()


def _views(batch: Batch) -> list[range]:
    """The views of each prefix."""
    f = batch.channels
    return [range(p * f, (p + 1) * f) for p in range(len(batch.prefixes))]


def sweep_multi_level_nce(
    batch: Batch,
    passes: Passes,
    level_weights: Tensor,
    positives: str,
    negatives: str,
    needs: Needs,
) -> tuple[Tensor, TableSet, Gradients]:
    """Losses `[N]`, light tables, and the gradients of the sum of the losses: three products.

    `level_weights` `[V, L]`: the loss is the sum over the views.
    """
    rows = _empty_tables(batch, batch.queries.shape[0], full=False)
    sweep = _Sweep(batch, passes)
    gradients = _Gradients(sweep, needs)
    losses = batch.scale.new_zeros(batch.queries.shape[0])
    for item in sweep:
        for block, views in zip(item.blocks, _views(batch), strict=True):
            for f, v in enumerate(views):
                passes.tables(block, f, rows.of(v, item.start, item.stop), None)
        here = slice(item.start, item.stop)
        loss, d_lse = multi_level_nce_gradient(
            rows.lse[:, here], rows.count[:, here], level_weights, positives, negatives
        )
        losses[here] = loss.sum(dim=0)
        if any(needs):
            channels = [
                Channel(rows.of(v, item.start, item.stop), TableGradientSet(lse=d))
                for v, d in enumerate(d_lse.unbind())
            ]
            gradients.add(item, [channels[v.start : v.stop] for v in _views(batch)])
    return losses, rows, gradients.finish()


def sweep_sigmoid(
    batch: Batch, passes: Passes, bias: Tensor, level_weights: Tensor, needs: Needs
) -> SigmoidResult:
    """Sum over the pairs of `w_y softplus(-+(z + bias))`, and its gradients: three products.

    `level_weights` `[L + 1]`, of level 0 too.
    """
    n, levels = batch.queries.shape[0], batch.levels.max_level + 1
    sweep = _Sweep(batch, passes)
    gradients = _Gradients(sweep, needs)
    sums = torch.empty(2, n, levels, dtype=batch.dtype, device=batch.queries.device)
    against = (-bias).expand(1, levels).contiguous()
    weights = level_weights.contiguous()
    for item in sweep:
        (block,) = item.blocks
        value, slope = sums[:, item.start : item.stop]
        passes.softplus(block, 0, against, weights, value, slope)
        if any(needs):
            gradients.add_written(item)
    value, slope = sums
    sign = torch.ones_like(weights)
    sign[1:] = -1.0
    d_bias = (slope.double().sum(dim=0) * (sign * weights).double()).sum().to(batch.dtype)
    return SigmoidResult(value @ weights, gradients.finish(), d_bias)
