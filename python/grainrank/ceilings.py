"""The ceilings of `FalseNegativeMargin`: from the best positive of every row and column."""

from __future__ import annotations

import torch
from torch import Tensor

from .autograd import level_tables
from .batch import Batch
from .levels import Ceiled, FalseNegativeMargin
from .table_sets import TableSet


def resolve_ceilings(batch: Batch, backend: str, columns: bool) -> Batch:
    """The batch with the ceilings in place of the margin, without a gradient.

    Costs a product of the similarities that the margin is about.
    """
    margin = batch.levels
    if not isinstance(margin, FalseNegativeMargin):
        return batch
    probe = batch._replace(levels=margin.base, scale=torch.ones_like(batch.scale), factors=None)
    if margin.reference is not None:
        q, c = margin.reference
        m, shards = batch.candidates.shape[0], batch.shards
        probe = Batch(
            q,
            c[:m],
            torch.ones((), device=q.device),
            margin.base,
            normalize=False,
            memory=c[m:] if batch.memory is not None else None,
            workspace_mb=batch.workspace_mb,
            shards=None if shards is None else shards._replace(side="references"),
        )
    with torch.no_grad():
        rows, of_columns = level_tables(probe, backend, columns=columns)
    by_row = _ceiling(margin, batch, rows, batch.queries.shape[0])
    by_column = None
    if of_columns is not None:
        by_column = _ceiling(margin, batch, of_columns, batch.num_columns)
    return batch._replace(
        levels=Ceiled(margin.base, by_row, by_column, margin.reference, margin.curated)
    )


def _ceiling(margin: FalseNegativeMargin, batch: Batch, tables: TableSet, size: int) -> Tensor:
    """`[P, size]`, infinite where there is no positive, and for the memory."""
    highest = tables.highest
    assert highest is not None
    best = highest[:, :, 1:].amax(dim=2)  # [1 or P, N]
    ceiling = best - (best.abs() * margin.margin if margin.relative else margin.margin)
    ceiling = torch.where(best > -1e29, ceiling, torch.inf).to(batch.dtype)
    out = ceiling.new_full((len(batch.prefixes), size), torch.inf)
    out[:, : ceiling.shape[1]] = ceiling
    return out
