"""The reference backend: a loss step on the whole N x M matrix, with the mathematics of
reference.py behind the contract of sweep.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference
from .batch import Batch
from .table_sets import Gradients, Needs, SigmoidResult, TableGradientSet, TableSet
from .thresholds import thresholds, through_thresholds


class _Prefix(NamedTuple):
    """The first `width` features."""

    width: int
    queries: Tensor  # [N, width], normalised if asked for
    candidates: Tensor  # [M + Q, width]
    query_norm: Tensor  # [N, 1], before
    candidate_norm: Tensor  # [M + Q, 1]
    similarities: Tensor  # [N, M + Q]
    row_levels: Tensor  # [N, M + Q]
    column_levels: Tensor  # [N, M]


def _prefixes(batch: Batch) -> Iterator[_Prefix]:
    all_queries, all_candidates = batch.queries.to(batch.dtype), batch.all_candidates(batch.dtype)
    n, m, columns = len(all_queries), len(batch.candidates), batch.num_columns
    level = batch.levels.block(0, n, columns, batch.queries.device)
    for p, width in enumerate(batch.prefixes):
        q, c = all_queries[:, :width], all_candidates[:, :width]
        q_norm, c_norm = q.new_ones(n, 1), c.new_ones(columns, 1)
        if batch.normalize:
            (q, q_norm), (c, c_norm) = reference.normalize(q), reference.normalize(c)
        s = q @ c.T
        rows, by_column = batch.levels.under_ceilings(level, s, p)
        yield _Prefix(width, q, c, q_norm, c_norm, s, rows, by_column[:, :m])


def _logits(batch: Batch, prefix: _Prefix, channel: int) -> tuple[Tensor, Tensor]:
    factors = None if batch.factors is None else batch.factors[channel]
    return reference.logits(
        prefix.similarities, prefix.row_levels, batch.scale, factors, batch.circle
    )


def _stack(views: list[TableSet]) -> TableSet:
    return TableSet(
        *(None if ts[0] is None else torch.stack(ts) for ts in zip(*views, strict=True))  # type: ignore[arg-type]
    )


def _row_tables(z: Tensor, prefix: _Prefix, max_level: int, full: bool, softplus: str) -> TableSet:
    tables = TableSet(*reference.level_tables(z, prefix.row_levels, max_level))
    if softplus:
        against = thresholds(tables.lse, softplus)
        sums, slopes = reference.softplus_sums(z, prefix.row_levels, against)
        tables = tables._replace(softplus=sums, slope=slopes)
    return tables if full else tables.light()


def dense_tables(
    batch: Batch, full: bool, columns: bool, softplus: str
) -> tuple[TableSet, TableSet | None]:
    rows, by_column = [], []
    max_level, m = batch.levels.max_level, len(batch.candidates)
    for prefix in _prefixes(batch):
        for f in range(batch.channels):
            z, _ = _logits(batch, prefix, f)
            rows.append(_row_tables(z, prefix, max_level, full, softplus))
            if columns:
                t = reference.level_tables(z[:, :m].T, prefix.column_levels.T, max_level)
                by_column.append(TableSet(*t) if full else TableSet(*t).light())
    return _stack(rows), _stack(by_column) if columns else None


def dense_softplus(batch: Batch, against: Tensor) -> tuple[Tensor, Tensor]:
    sums, slopes = torch.empty_like(against), torch.empty_like(against)
    for p, prefix in enumerate(_prefixes(batch)):
        for f in range(batch.channels):
            v = p * batch.channels + f
            z, _ = _logits(batch, prefix, f)
            sums[v], slopes[v] = reference.softplus_sums(z, prefix.row_levels, against[v])
    return sums, slopes


class _Gradients:
    """Adds up the prefixes' parts."""

    def __init__(self, batch: Batch, needs: Needs) -> None:
        self.batch, self.needs = batch, needs
        zeros = batch.scale.new_zeros  # contiguous, whatever the strides of the inputs
        self.d_queries = zeros(batch.queries.shape)
        self.d_candidates = zeros(batch.candidates.shape)
        self.d_scale = zeros(())
        self.d_factors = None if batch.factors is None else zeros(batch.factors.shape)

    def add_factors(self, channel: int, g: Tensor, prefix: _Prefix) -> None:
        if self.d_factors is not None:
            moment = self.batch.scale * (g * prefix.similarities)
            for k in range(self.d_factors.shape[1]):
                here = prefix.row_levels == k
                # A pair that only the row ignores has level 0 for its column.
                here = here | ((k == 0) & (prefix.row_levels < 0))
                self.d_factors[channel, k] += torch.where(here, moment, 0.0).sum()

    def add(self, h: Tensor, prefix: _Prefix) -> None:
        scale, m, width = self.batch.scale, len(self.batch.candidates), prefix.width
        q, c = prefix.queries, prefix.candidates
        unscaled = h @ c
        self.d_scale += (q * unscaled).sum()
        d_q, d_c = scale * unscaled, scale * (h[:, :m].T @ q)
        if self.batch.normalize:
            d_q = reference.normalize_backward(d_q, q, prefix.query_norm)
            d_c = reference.normalize_backward(d_c, c[:m], prefix.candidate_norm[:m])
        self.d_queries[:, :width] += d_q
        self.d_candidates[:, :width] += d_c

    def finish(self) -> Gradients:
        def needed(need: bool, d: Tensor | None) -> Tensor:
            return d if need and d is not None else self.d_scale.new_empty(0)

        return Gradients(
            needed(self.needs.queries, self.d_queries),
            needed(self.needs.candidates, self.d_candidates),
            self.d_scale,
            needed(self.needs.factors, self.d_factors),
        )


def dense_gradients(
    batch: Batch,
    rows: TableSet,
    d_rows: TableGradientSet,
    columns: TableSet | None,
    d_columns: TableGradientSet | None,
    softplus: str,
    needs: Needs,
) -> Gradients:
    against = None
    if softplus and d_rows.softplus is not None:
        against = thresholds(rows.lse, softplus)
        d_rows = through_thresholds(rows, d_rows, softplus)
    out = _Gradients(batch, needs)
    m = len(batch.candidates)
    for p, prefix in enumerate(_prefixes(batch)):
        h = torch.zeros_like(prefix.similarities)
        for f in range(batch.channels):
            v = p * batch.channels + f
            z, slope = _logits(batch, prefix, f)
            t = None if against is None else against[v]
            g = _pair_gradient(z, prefix.row_levels, rows.of(v), d_rows.of(v), t)
            if columns is not None and d_columns is not None:
                by_column = _pair_gradient(
                    z[:, :m].T, prefix.column_levels.T, columns.of(v), d_columns.of(v), None
                )
                g[:, :m] += by_column.T
            out.add_factors(f, g, prefix)
            h = h + g * slope
        out.add(h, prefix)
    return out.finish()


def _pair_gradient(
    z: Tensor, level: Tensor, tables: TableSet, d: TableGradientSet, against: Tensor | None
) -> Tensor:
    return reference.pair_gradient(
        z,
        level,
        reference.Tables(*tables[:8]),  # type: ignore[arg-type]
        reference.TableGradients(*d),
        against,
    )


def dense_multi_level_nce(
    batch: Batch, level_weights: Tensor, positives: str, negatives: str, needs: Needs
) -> tuple[Tensor, TableSet, Gradients]:
    rows, _ = dense_tables(batch, full=False, columns=False, softplus="")
    losses = batch.scale.new_zeros(len(batch.queries))
    d_lse = torch.zeros_like(rows.lse)
    for v in range(batch.views):
        tables = reference.Tables(*rows.of(v)[:8])  # type: ignore[arg-type]
        loss, d_lse[v] = reference.multi_level_nce(tables, level_weights[v], positives, negatives)
        losses = losses + loss
    if not any(needs):
        return losses, rows, _Gradients(batch, needs).finish()
    d_rows = TableGradientSet(lse=d_lse)
    return losses, rows, dense_gradients(batch, rows, d_rows, None, None, "", needs)


def dense_sigmoid(batch: Batch, bias: Tensor, level_weights: Tensor, needs: Needs) -> SigmoidResult:
    out = _Gradients(batch, needs)
    losses, d_bias = batch.scale.new_zeros(len(batch.queries)), torch.zeros_like(bias)
    for prefix in _prefixes(batch):
        z, slope = _logits(batch, prefix, 0)
        loss, g = reference.sigmoid_loss(z, prefix.row_levels, bias, level_weights)
        losses, d_bias = losses + loss, d_bias + g.sum()
        out.add(g * slope, prefix)
    return SigmoidResult(losses, out.finish(), d_bias)
