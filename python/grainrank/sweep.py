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

import torch
from torch import Tensor

from . import column_tables
from .batch import Batch
from .block_gradients import GradientSums
from .row_blocks import Channel, ColumnTables, Passes, RowBlocks, Rows, kept_shape
from .table_sets import Gradients, Needs, SigmoidResult, TableGradientSet, TableSet
from .thresholds import thresholds, through_thresholds


def _empty_tables(batch: Batch, rows: int, full: bool, softplus: bool = False) -> TableSet:
    shape = (batch.views, rows, batch.levels.max_level + 1)
    return TableSet.empty(
        *shape, dtype=batch.dtype, device=batch.queries.device, full=full, softplus=softplus
    )


def sweep_tables(
    batch: Batch, passes: Passes, full: bool, columns: bool, softplus: str, keep: bool
) -> tuple[TableSet, TableSet | None, Tensor | None]:
    """The tables of every row `[V, N, L + 1]` and column `[V, M, L + 1]`: one product.

    `softplus` names the negatives of the softplus sums; "": these are not wanted. With `keep` comes
    the memory of the row blocks, with the similarities of the first ones, for the gradients.
    """
    kept = None
    if keep and not passes.fused and 0 not in kept_shape(batch):
        kept = passes.lent(*kept_shape(batch))
    n, m = batch.queries.shape[0], batch.candidates.shape[0]
    rows = _empty_tables(batch, n, full, bool(softplus))
    merged: list[TableSet | None] = [None] * batch.views
    for item in RowBlocks(batch, passes, columns=columns, last_first=True, kept=kept):
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
        return rows, None, kept
    views = [column_tables.narrowed(t, batch.dtype) for t in merged if t is not None]
    stacked = (None if ts[0] is None else torch.stack(ts) for ts in zip(*views, strict=True))
    return rows, TableSet(*stacked), kept  # type: ignore[arg-type]


def sweep_softplus(batch: Batch, passes: Passes, against: Tensor) -> tuple[Tensor, Tensor]:
    """The softplus sums against given thresholds `[V, N, L + 1]`, and their slopes: one product."""
    sums, slopes = torch.empty_like(against), torch.empty_like(against)
    for item in RowBlocks(batch, passes):
        here = slice(item.start, item.stop)
        for block, views in zip(item.blocks, _views(batch), strict=True):
            for f, v in enumerate(views):
                given = against[v, here].contiguous()
                passes.softplus(block, f, given, None, sums[v, here], slopes[v, here])
    return sums, slopes


def sweep_gradients(
    batch: Batch,
    passes: Passes,
    rows: TableSet,
    d_rows: TableGradientSet,
    columns: TableSet | None,
    d_columns: TableGradientSet | None,
    softplus: str,
    needs: Needs,
    kept: Tensor | None,
) -> Gradients:
    """The gradients for given gradients of the tables: three products, or two for what was kept,
    whose memory is overwritten.
    """
    against = None
    if softplus and d_rows.softplus is not None:
        against = thresholds(rows.lse, softplus)
        d_rows = through_thresholds(rows, d_rows, softplus)
    given = (*d_rows, *(d_columns or ()))
    # A bound of the gradient of a logit: each of a table's entries is shared out among pairs.
    bound = sum((d.abs().amax() for d in given if d is not None), torch.zeros_like(batch.scale))
    blocks = RowBlocks(batch, passes, bound, kept=kept)
    gradients = GradientSums(blocks, needs)
    of_columns: list[ColumnTables | None] = [None] * batch.views
    if columns is not None and d_columns is not None:
        for v in range(batch.views):
            of_columns[v] = ColumnTables(columns.of(v), d_columns.of(v), batch.num_columns)

    def channel(item: Rows, view: int) -> Channel:
        here = (view, item.start, item.stop)
        of_view = None if against is None else against[view, item.start : item.stop].contiguous()
        return Channel(rows.of(*here), d_rows.of(*here), of_columns[view], of_view)

    for item in blocks:
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
    blocks = RowBlocks(batch, passes, level_weights.sum() if any(needs) else None)
    gradients = GradientSums(blocks, needs)
    losses = batch.scale.new_zeros(batch.queries.shape[0])
    for item in blocks:
        for block, views in zip(item.blocks, _views(batch), strict=True):
            for f, v in enumerate(views):
                passes.tables(block, f, rows.of(v, item.start, item.stop), None)
        here = slice(item.start, item.stop)
        losses[here], d_lse = passes.multi_level_nce(
            rows.lse[:, here], rows.count[:, here], level_weights, positives, negatives
        )
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
    blocks = RowBlocks(batch, passes, level_weights.amax())
    gradients = GradientSums(blocks, needs)
    sums = torch.empty(2, n, levels, dtype=batch.dtype, device=batch.queries.device)
    against = (-bias).expand(1, levels).contiguous()
    weights = level_weights.contiguous()
    for item in blocks:
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
