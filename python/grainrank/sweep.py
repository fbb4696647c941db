"""The sweep over row blocks: products by `torch.mm`, between them the fused passes of a backend.

A row block sees all columns, so its tables are final at once and its gradient can be written over
its similarities: S = Q_R C^T; tables; head; G over S; dQ_R = G C; dC += G^T Q_R. Three products,
and no more memory than one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .heads import multi_level_nce_gradient
from .levels import LevelSource
from .validation import accumulation_dtype

NORM_EPS = 1e-12
DEFAULT_WORKSPACE = 64 * 2**20  # bytes
SMALLEST_DEFAULT_BLOCK = 1024  # rows; each product packs all candidates anew
FINISH_ROWS = 2048


class TableSet(NamedTuple):
    """Row tables `[N, L + 1]`, as `level_statistics` describes them; None: not wanted."""

    lse: Tensor
    neg_lse: Tensor | None
    total: Tensor | None
    count: Tensor  # type: ignore[assignment]
    highest: Tensor | None
    lowest: Tensor | None
    highest_at: Tensor | None
    lowest_at: Tensor | None

    @staticmethod
    def empty(
        rows: int, max_level: int, dtype: torch.dtype, device: torch.device, full: bool
    ) -> TableSet:
        def floats() -> Tensor:
            return torch.empty(rows, max_level + 1, dtype=dtype, device=device)

        def integers() -> Tensor:
            return torch.empty(rows, max_level + 1, dtype=torch.int64, device=device)

        if not full:
            return TableSet(floats(), None, None, integers(), None, None, None, None)
        return TableSet(
            floats(), floats(), floats(), integers(), floats(), floats(), integers(), integers()
        )

    def rows(self, start: int, stop: int) -> TableSet:
        return TableSet(*(None if t is None else t[start:stop] for t in self))  # type: ignore[arg-type]


class TableGradientSet(NamedTuple):
    """Gradients of the tables `[N, L + 1]`; None is zero."""

    lse: Tensor
    neg_lse: Tensor | None = None
    total: Tensor | None = None
    highest: Tensor | None = None
    lowest: Tensor | None = None

    def rows(self, start: int, stop: int) -> TableGradientSet:
        return TableGradientSet(*(None if t is None else t[start:stop] for t in self))  # type: ignore[arg-type]


class Passes(Protocol):
    """The two fused passes of a backend over a row block; `start` is its first row in the batch."""

    def empty(self, *shape: int) -> Tensor:
        """Memory of the accumulation dtype for a large result or the workspace."""

    def tables(self, similarities: Tensor, start: int, out: TableSet) -> None:
        """Fills the tables of the block from similarities `[R, M]`."""

    def gradients_(
        self, similarities: Tensor, start: int, tables: TableSet, d_tables: TableGradientSet
    ) -> None:
        """Writes the gradient of the logits over the similarities `[R, M]`."""


@dataclass(frozen=True)
class Batch:
    """What one loss step works on."""

    queries: Tensor  # [N, D]
    candidates: Tensor  # [M, D]
    scale: Tensor  # 0-d, accumulation dtype
    levels: LevelSource
    normalize: bool
    workspace_mb: float = 0.0  # 0: the default

    @property
    def dtype(self) -> torch.dtype:
        return accumulation_dtype(self.queries.dtype)


@dataclass(frozen=True)
class Needs:
    """Which gradients are wanted."""

    queries: bool
    candidates: bool
    scale: bool

    def any(self) -> bool:
        return self.queries or self.candidates or self.scale


@dataclass(frozen=True)
class _Operand:
    """Rows as the products take them: accumulation dtype, of length 1 when normalised."""

    values: Tensor  # [R, D]
    norm: Tensor | None  # [R, 1], before normalisation

    @staticmethod
    def prepare(x: Tensor, batch: Batch, passes: Passes) -> _Operand:
        values = x.to(batch.dtype)
        if not batch.normalize:
            return _Operand(values, None)
        norm = torch.linalg.vector_norm(values, dim=1, keepdim=True)
        # A widened copy is ours to overwrite.
        own = values if values is not x else passes.empty(*values.shape)
        return _Operand(torch.div(values, norm.clamp_min(NORM_EPS), out=own), norm)

    def finish_(self, d_values: Tensor, scale: Tensor) -> None:
        """In place: from the gradient of `values` per unit of scale to that of the input rows."""
        for start in range(0, d_values.shape[0], FINISH_ROWS):
            d = d_values[start : start + FINISH_ROWS]
            d.mul_(scale)
            if self.norm is not None:
                norm = self.norm[start : start + FINISH_ROWS]
                unit = self.values[start : start + FINISH_ROWS]
                along = (unit * d).sum(dim=1, keepdim=True)
                along.masked_fill_(norm < NORM_EPS, 0.0)
                d.addcmul_(unit, along, value=-1).div_(norm.clamp_min(NORM_EPS))


def block_rows(num_queries: int, num_candidates: int, item_bytes: int, workspace_mb: float) -> int:
    """R: the most rows of a block that the workspace holds, spread evenly over the blocks.

    Raises:
        ValueError: the workspace does not hold a single row.
    """
    row_bytes = num_candidates * item_bytes
    if workspace_mb > 0:
        most = int(workspace_mb * 2**20) // row_bytes
        if most < 1:
            raise ValueError(
                f"workspace_mb must hold at least one row of M = {num_candidates} logits, "
                f"{row_bytes / 2**20:.3g} MiB, got {workspace_mb:.3g}"
            )
    else:
        most = max(DEFAULT_WORKSPACE // row_bytes, SMALLEST_DEFAULT_BLOCK)
    blocks = -(-num_queries // most)
    return -(-num_queries // blocks)


def _blocks(
    batch: Batch, passes: Passes, candidates: _Operand
) -> Iterator[tuple[int, int, _Operand, Tensor]]:
    """Range, queries and similarities of each row block; the next one uses the workspace again."""
    n, m = batch.queries.shape[0], batch.candidates.shape[0]
    rows = block_rows(n, m, candidates.values.element_size(), batch.workspace_mb)
    workspace = passes.empty(rows, m)  # [R, M]
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        queries = _Operand.prepare(batch.queries[start:stop], batch, passes)
        similarities = workspace[: stop - start]
        torch.mm(queries.values, candidates.values.t(), out=similarities)
        yield start, stop, queries, similarities


def sweep_tables(batch: Batch, passes: Passes, full: bool) -> TableSet:
    """The tables of every row: one product."""
    tables = TableSet.empty(
        batch.queries.shape[0], batch.levels.max_level, batch.dtype, batch.queries.device, full
    )
    candidates = _Operand.prepare(batch.candidates, batch, passes)
    for start, stop, _, similarities in _blocks(batch, passes, candidates):
        passes.tables(similarities, start, tables.rows(start, stop))
    return tables


class _Gradients:
    """dQ, dC and the scale's gradient, collected block by block."""

    def __init__(self, batch: Batch, passes: Passes, candidates: _Operand, needs: Needs) -> None:
        self.batch, self.candidates, self.needs = batch, candidates, needs
        self.d_queries = passes.empty(*(batch.queries.shape if needs.queries else (0,)))
        self.d_candidates = passes.empty(*(batch.candidates.shape if needs.candidates else (0,)))
        self._d_scale = torch.zeros((), dtype=torch.float64, device=batch.queries.device)

    def add(self, start: int, stop: int, queries: _Operand, g: Tensor) -> None:
        """Adds the block with the gradient G `[R, M]` of its logits."""
        needs = self.needs
        if needs.queries or (needs.scale and not needs.candidates):
            out = self.d_queries[start:stop] if needs.queries else None
            d_queries = torch.mm(g, self.candidates.values, out=out)
            if needs.scale:
                self._d_scale += (queries.values * d_queries).sum(dtype=torch.float64)
            if needs.queries:
                queries.finish_(d_queries, self.batch.scale)
        if needs.candidates:
            if start == 0:
                torch.mm(g.t(), queries.values, out=self.d_candidates)
            else:
                self.d_candidates.addmm_(g.t(), queries.values)

    def finish(self) -> tuple[Tensor, Tensor, Tensor]:
        """d_queries `[N, D]`, d_candidates `[M, D]`, d_scale; empty where not needed."""
        needs = self.needs
        if needs.candidates:
            if needs.scale and not needs.queries:
                for start in range(0, self.d_candidates.shape[0], FINISH_ROWS):
                    rows = slice(start, start + FINISH_ROWS)
                    product = self.candidates.values[rows] * self.d_candidates[rows]
                    self._d_scale += product.sum(dtype=torch.float64)
            self.candidates.finish_(self.d_candidates, self.batch.scale)
        return self.d_queries, self.d_candidates, self._d_scale.to(self.batch.dtype)


def sweep_gradients(
    batch: Batch, passes: Passes, tables: TableSet, d_tables: TableGradientSet, needs: Needs
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients for given gradients of the tables: three products."""
    candidates = _Operand.prepare(batch.candidates, batch, passes)
    gradients = _Gradients(batch, passes, candidates, needs)
    for start, stop, queries, similarities in _blocks(batch, passes, candidates):
        passes.gradients_(similarities, start, tables.rows(start, stop), d_tables.rows(start, stop))
        gradients.add(start, stop, queries, similarities)
    return gradients.finish()


def sweep_multi_level_nce(
    batch: Batch,
    passes: Passes,
    level_weights: Tensor,
    positives: str,
    negatives: str,
    full: bool,
    needs: Needs,
) -> tuple[Tensor, TableSet, tuple[Tensor, Tensor, Tensor]]:
    """Losses `[N]`, tables, and the gradients of the sum of the losses: three products."""
    n = batch.queries.shape[0]
    tables = TableSet.empty(n, batch.levels.max_level, batch.dtype, batch.queries.device, full)
    candidates = _Operand.prepare(batch.candidates, batch, passes)
    gradients = _Gradients(batch, passes, candidates, needs)
    losses = batch.scale.new_empty(n)
    for start, stop, queries, similarities in _blocks(batch, passes, candidates):
        block = tables.rows(start, stop)
        passes.tables(similarities, start, block)
        losses[start:stop], d_lse = multi_level_nce_gradient(
            block.lse, block.count, level_weights, positives, negatives
        )
        if needs.any():
            passes.gradients_(similarities, start, block, TableGradientSet(d_lse))
            gradients.add(start, stop, queries, similarities)
    return losses, tables, gradients.finish()
