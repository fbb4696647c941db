"""The ceilings of `FalseNegativeMargin`: from the best positive of every row and column."""

from __future__ import annotations

import torch
from torch import Tensor

from . import ops
from .batch import Batch
from .levels import Ceiled, FalseNegativeMargin
from .table_sets import COLUMN_TABLES, TableSet


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
        scale = torch.ones((), device=q.device)
        probe = Batch(q, c, scale, margin.base, False, workspace_mb=batch.workspace_mb)
    with torch.no_grad():
        tables = ops.level_tables(*ops.arguments(probe, backend), True, columns, "")
    at = TableSet._fields.index("highest")
    rows = _ceiling(margin, batch, tables[at], batch.queries.shape[0])
    by_column = None
    if columns:
        at = len(TableSet._fields) + COLUMN_TABLES.index("highest")
        by_column = _ceiling(margin, batch, tables[at], batch.num_columns)
    return batch._replace(
        levels=Ceiled(margin.base, rows, by_column, margin.reference, margin.curated)
    )


def _ceiling(margin: FalseNegativeMargin, batch: Batch, highest: Tensor, size: int) -> Tensor:
    """`[P, size]`, infinite where there is no positive, and for the memory."""
    best = highest[:, :, 1:].amax(dim=2)  # [1 or P, N]
    ceiling = best - (best.abs() * margin.margin if margin.relative else margin.margin)
    ceiling = torch.where(best > -1e29, ceiling, torch.inf).to(batch.dtype)
    out = ceiling.new_full((len(batch.prefixes), size), torch.inf)
    out[:, : ceiling.shape[1]] = ceiling
    return out
