"""Row blocks: what the passes of a backend are given, and the iteration over the blocks of a batch.

Several prefixes of the features (Matryoshka) cost the products of the longest one: the similarities
of a prefix are those of the one before plus the product of the features between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .batch import Batch
from .operands import Operand, RowPasses
from .table_sets import TableGradientSet, TableSet

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
class Rows:
    """A row block: its queries, and its similarities in every prefix."""

    start: int
    stop: int
    queries: Operand
    blocks: list[Block]


class RowBlocks:
    """Iterates over the row blocks; the next one uses the workspace again."""

    def __init__(self, batch: Batch, passes: Passes) -> None:
        self.batch, self.passes = batch, passes
        self.candidates = Operand.prepare(
            batch.candidates, batch.all_candidates(), batch.prefixes, batch.normalize, passes
        )

    def __iter__(self) -> Iterator[Rows]:
        batch, passes, candidates = self.batch, self.passes, self.candidates
        n, columns, prefixes = batch.queries.shape[0], batch.num_columns, len(batch.prefixes)
        row_bytes = columns * (
            prefixes * candidates.values.element_size() + 4 * batch.levels.num_references
        )
        rows = block_rows(n, row_bytes, batch.workspace_mb)
        with passes.workspace(prefixes, rows, columns) as workspace:
            for start in range(0, n, rows):
                yield self._block(start, min(start + rows, n), workspace)

    def _block(self, start: int, stop: int, workspace: Tensor) -> Rows:
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
        return Rows(start, stop, queries, blocks)
