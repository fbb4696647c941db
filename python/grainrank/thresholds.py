"""Softplus sums of the positives: each against the negatives of its level (reference.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import EMPTY
from .table_sets import TableGradientSet, TableSet


def _negatives(level: int, negatives: str) -> slice:
    return slice(0, level) if negatives == "lower" else slice(0, 1)


def thresholds(lse: Tensor, negatives: str) -> Tensor:
    """Log-sum-exp of the negatives of each level, from and to `[..., L + 1]`.

    Level 0 has none and holds EMPTY, like a level whose negatives are empty.
    """
    columns = [torch.full_like(lse[..., 0], EMPTY)]
    columns += [
        torch.logsumexp(lse[..., _negatives(k, negatives)], dim=-1) for k in range(1, lse.shape[-1])
    ]
    return torch.stack(columns, dim=-1)


def through_thresholds(
    rows: TableSet, d_rows: TableGradientSet, negatives: str
) -> TableGradientSet:
    """The gradients, with the part of the softplus sums that reaches lse by way of the thresholds.

    `d softplus[k] / d lse[m] = slope[k] exp(lse[m] - t[k])` for m in the negatives of level k.
    """
    assert rows.slope is not None
    assert d_rows.softplus is not None
    d_threshold = d_rows.softplus * rows.slope
    t = thresholds(rows.lse, negatives)
    d_lse = torch.zeros_like(rows.lse) if d_rows.lse is None else d_rows.lse.clone()
    for k in range(1, rows.lse.shape[-1]):
        n = _negatives(k, negatives)
        share = torch.exp(rows.lse[..., n] - t[..., k, None])
        d_lse[..., n] += d_threshold[..., k, None] * share
    return d_rows._replace(lse=d_lse)
