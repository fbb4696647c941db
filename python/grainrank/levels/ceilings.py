"""False-negative margins: pairs of level 0 that score too high are ignored."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor

from ..validation import check_device, check_integers, check_length
from .bands import check_references
from .base import LevelSource, check_ids

Pair = tuple[Tensor, Tensor]  # of the queries and of the candidates


class FalseNegativeMargin(LevelSource):
    """`LevelSource.false_negative_margin`: what is asked for. `Ceiled` is what the kernels get."""

    def __init__(
        self,
        base: LevelSource,
        margin: float,
        relative: bool = False,
        reference: Pair | None = None,
        curated: Pair | None = None,
    ) -> None:
        if isinstance(margin, bool) or not isinstance(margin, (int, float)):
            raise TypeError(f"margin must be a number, got {type(margin).__name__}")
        if not math.isfinite(margin) or (relative and not 0 <= margin < 1):
            expected = "in 0 <= margin < 1 where relative" if relative else "finite"
            raise ValueError(f"margin must be {expected}, got {margin}")
        self.base = base
        self.members = (base,)
        self.max_level = base.max_level
        self.margin = float(margin)
        self.relative = relative
        for name, pair in (("reference", reference), ("curated", curated)):
            if pair is not None and not (isinstance(pair, (tuple, list)) and len(pair) == 2):
                raise TypeError(
                    f"{name} must be a pair (of the queries, of the candidates), "
                    f"got {type(pair).__name__}"
                )
        self.reference = None if reference is None else check_references(*reference, True)
        self.curated: Pair | None = None
        if curated is not None:
            self.curated = (
                check_integers("curated query ids", curated[0], "[N]", 1),
                check_integers("curated candidate ids", curated[1], "[M]", 1),
            )
        self.tensors = (*base.tensors, *(self.reference or ()), *(self.curated or ()))

    def check_own(self, num_queries: int, num_candidates: int, device: torch.device) -> None:
        if self.reference is not None:
            q, c = self.reference
            check_length("reference of the queries", q, num_queries, "N", "queries")
            check_length("reference of the candidates", c, num_candidates, "M", "candidates")
            check_device("reference of the queries", q, device)
        if self.curated is not None:
            names = "curated query ids", "curated candidate ids"
            check_ids(*names, self.curated, num_queries, num_candidates, device)

    def transposed(self) -> LevelSource:
        reference = None if self.reference is None else self.reference[::-1]
        curated = None if self.curated is None else self.curated[::-1]
        return FalseNegativeMargin(
            self.base.transposed(), self.margin, self.relative, reference, curated
        )

    def with_columns(
        self, column: Callable[[Tensor], Tensor], matrix: Callable[[LevelSource], LevelSource]
    ) -> LevelSource:
        other = copy.copy(self)
        other.base = self.base.with_columns(column, matrix)
        other.members = (other.base,)
        other.reference = _with_columns(self.reference, column)
        other.curated = _with_columns(self.curated, column)
        return other

    def check_combines(self, what: str) -> NoReturn:
        raise ValueError(
            f"{what} cannot follow false_negative_margin, whose ceilings need all other levels; "
            f"call false_negative_margin last"
        )


def _with_columns(pair: Pair | None, column: Callable[[Tensor], Tensor]) -> Pair | None:
    return None if pair is None else (pair[0], column(pair[1]))


class Ceiled(LevelSource):
    """Levels under ceilings of the similarity: above them a pair of level 0 is ignored.

    Args:
        base: the levels.
        rows: ceilings of the rows, `[P, N]`, one for each prefix.
        columns: ceilings of the columns for the columns' own tables, `[P, M]`, or None.
        reference: unit embeddings whose cosine is meant, or None: the model's own similarity.
        curated: ids of pairs that are never ignored, or None.
    """

    def __init__(
        self,
        base: LevelSource,
        rows: Tensor,
        columns: Tensor | None,
        reference: Pair | None,
        curated: Pair | None,
    ) -> None:
        self.base, self.rows, self.columns = base, rows, columns
        self.members = (base,)
        self.reference, self.curated = reference, curated
        self.max_level = base.max_level
        self.num_references = base.num_references + (reference is not None)
        parts = {"columns": columns, "reference": reference, "curated": curated}
        flags = "".join(f":{name}" for name, part in parts.items() if part is not None)
        self.kind = f"ceiled{flags}({base.kind})"
        self.tensors = (
            *base.tensors,
            rows,
            *(() if columns is None else (columns,)),
            *(reference or ()),
            *(curated or ()),
        )

    def block(
        self, start: int, stop: int, num_candidates: int, device: torch.device | None = None
    ) -> Tensor:
        """The levels before any pair is ignored; `under_ceilings` has the rest."""
        return self.base.block(start, stop, num_candidates, device)

    def under_ceilings(
        self, level: Tensor, similarities: Tensor, prefix: int, start: int = 0
    ) -> tuple[Tensor, Tensor]:
        here = slice(start, start + level.shape[0])
        if self.reference is not None:
            q, c = self.reference
            similarities = (q[here] @ c.T).to(self.rows.dtype)
        kept = level != 0
        if self.curated is not None:
            kept = kept | (self.curated[0][here, None] == self.curated[1])
        high = similarities > self.rows[prefix, here, None]
        by_row = level.masked_fill(high & ~kept, -1)
        if self.columns is None:
            return by_row, level
        return by_row, level.masked_fill((similarities > self.columns[prefix]) & ~kept, -1)

    def transposed(self) -> LevelSource:
        """Of a source with ceilings of the columns: these become those of the rows."""
        if self.columns is None:
            raise RuntimeError("ceilings of the rows alone have no transposed form")
        reference = None if self.reference is None else self.reference[::-1]
        curated = None if self.curated is None else self.curated[::-1]
        return Ceiled(self.base.transposed(), self.columns, self.rows, reference, curated)

    def with_columns(
        self, column: Callable[[Tensor], Tensor], matrix: Callable[[LevelSource], LevelSource]
    ) -> LevelSource:
        columns = self.columns
        if columns is not None:
            columns = column(columns.t().contiguous()).t().contiguous()
        return Ceiled(
            self.base.with_columns(column, matrix),
            self.rows,
            columns,
            _with_columns(self.reference, column),
            _with_columns(self.curated, column),
        )

    def of_prefix(self, prefix: int) -> LevelSource:
        here = slice(prefix, prefix + 1)
        columns = None if self.columns is None else self.columns[here]
        return Ceiled(self.base, self.rows[here], columns, self.reference, self.curated)

    def of_block(self, base: LevelSource, side: int, rows: int) -> LevelSource:
        """The same rows' ceilings over pairs of one side (`joint`): of 0 queries, 1 candidates."""
        reference = None
        if self.reference is not None:
            reference = self.reference[side][:rows], self.reference[side]
        return Ceiled(base, self.rows[:, :rows], None, reference, None)
