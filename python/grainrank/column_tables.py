"""Column tables: merged over the row blocks, and laid out for the gradient pass."""

from __future__ import annotations

import torch
from torch import Tensor

from .table_sets import TableGradientSet, TableSet

PADDING = 64  # columns that a vector may read behind the last one
_NOWHERE = 1e30  # exp(z - this) is 0


def merge(into: TableSet, block: TableSet) -> TableSet:
    """Tables of more rows, `[.., M, L + 1]`. `into.lse` and `into.neg_lse` are float64.

    Of equal extremes the first row counts, whichever of the two comes first.
    """

    def add_exponentials(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else torch.logaddexp(a, b.double())

    def earlier(a: Tensor | None, b: Tensor | None) -> Tensor | bool:
        return False if a is None or b is None else (b >= 0) & (b < a)

    higher = lower = None
    if block.highest is not None and into.highest is not None:
        same = block.highest == into.highest
        higher = same & earlier(into.highest_at, block.highest_at)
        higher = higher | (block.highest > into.highest)
    if block.lowest is not None and into.lowest is not None:
        same = block.lowest == into.lowest
        lower = same & earlier(into.lowest_at, block.lowest_at)
        lower = lower | (block.lowest < into.lowest)

    def choose(mask: Tensor | None, a: Tensor | None, b: Tensor | None) -> Tensor | None:
        if mask is None or a is None or b is None:
            return None
        # A NaN stays, wherever it came in.
        return torch.where(mask | b.isnan() if b.is_floating_point() else mask, b, a)

    return TableSet(
        add_exponentials(into.lse, block.lse),  # type: ignore[arg-type]
        add_exponentials(into.neg_lse, block.neg_lse),
        into.total + block.total,
        into.count + block.count,
        choose(higher, into.highest, block.highest),
        choose(lower, into.lowest, block.lowest),
        choose(higher, into.highest_at, block.highest_at),
        choose(lower, into.lowest_at, block.lowest_at),
    )


def widened(tables: TableSet) -> TableSet:
    """What `merge` collects in."""
    neg_lse = None if tables.neg_lse is None else tables.neg_lse.double()
    return tables._replace(lse=tables.lse.double(), neg_lse=neg_lse)


def narrowed(tables: TableSet, dtype: torch.dtype) -> TableSet:
    neg_lse = None if tables.neg_lse is None else tables.neg_lse.to(dtype)
    return tables._replace(lse=tables.lse.to(dtype), neg_lse=neg_lse)


def by_level(
    tables: TableSet, d_tables: TableGradientSet, columns: int
) -> dict[str, Tensor | None]:
    """Tables and gradients of one view as the gradient pass reads them, `[L + 1, M + Q + padding]`.

    Columns of the memory have no tables, and a gradient of 0.
    """

    def lay(x: Tensor | None, fill: float) -> Tensor | None:
        if x is None:
            return None
        out = x.new_full((x.shape[1], columns + PADDING), fill)
        out[:, : x.shape[0]] = x.t()
        return out

    full = d_tables.neg_lse is not None or d_tables.total is not None
    zero = torch.zeros_like(tables.lse)
    negative = tables.neg_lse if d_tables.neg_lse is not None else None

    def gradient(d: Tensor | None) -> Tensor | None:
        return lay(zero if d is None else d, 0.0)

    return {
        "lse": lay(tables.lse, _NOWHERE),
        "d_lse": gradient(d_tables.lse),
        "neg_lse": lay(zero + _NOWHERE if negative is None else negative, _NOWHERE),
        "d_neg_lse": gradient(d_tables.neg_lse),
        "d_total": gradient(d_tables.total),
    } | ({} if full else {"neg_lse": None, "d_neg_lse": None, "d_total": None})
