"""From gradients of the tables to those of the inputs, added up block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .operands import Operand
from .row_blocks import Block, Channel, RowBlocks, Rows
from .table_sets import Gradients, Needs
from .tile_products import TileProducts


class _Pairs(NamedTuple):
    """Single pairs of a block, `[.., L + 1]` each; those outside it have the gradient 0."""

    row: Tensor
    column: Tensor
    gradient: Tensor  # of the product
    dot: Tensor  # the gradient of `scale * s` times s


class GradientSums:
    """dQ, dC, and the gradients of the scale and the factors, collected block by block."""

    def __init__(self, blocks: RowBlocks, needs: Needs) -> None:
        batch, passes = blocks.batch, blocks.passes
        self.batch, self.passes, self.needs = batch, passes, needs
        self._blocks = blocks
        self.d_queries = passes.empty(*(batch.queries.shape if needs.queries else (0,)))
        if needs.queries:
            blocks.lend(self.d_queries)
        if needs.candidates and batch.d_candidates is not None:
            self.d_candidates = batch.d_candidates
        else:
            shape = batch.candidates.shape if needs.candidates else (0,)
            self.d_candidates = passes.empty(*shape)
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

    @property
    def candidates(self) -> Operand:
        return self._blocks.candidates

    @property
    def _unit(self) -> Tensor | None:
        return self._blocks.unit

    def add(self, item: Rows, channels: Sequence[Sequence[Channel]]) -> None:
        """Computes the gradients of a block and adds them up.

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
            # Read before the gradients are written, which may be over the similarities.
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

    def add_written(self, item: Rows) -> None:
        """Adds up a block whose gradients are written already."""
        self._add_products(item, None)

    def _extremes(self, block: Block, channel: int, c: Channel) -> Iterator[_Pairs]:
        """The highest and the lowest logit of a level are single pairs."""
        rows, columns = block.shape[0], c.columns
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
        s = block.at(row, column, batch.dtype) * factor
        if batch.circle is not None:
            positive = torch.arange(d.shape[1], device=d.device) > 0
            weight = torch.where(positive, 1 + batch.circle - s, s + batch.circle).clamp_min(0)
        elif batch.factors is not None:
            weight = batch.factors[channel].expand_as(d)
        else:
            weight = torch.ones_like(d)
        g = torch.where(there, d * weight, 0.0)
        return _Pairs(row, column, g * factor, g * s)

    def _add_pairs(
        self, block: Block, pairs: _Pairs, c: Channel, row_moments: Tensor | None
    ) -> None:
        row, column, g, dot = pairs
        moment = self.batch.scale * dot
        if block.dots is not None:
            block.dots.index_put_((row,), dot, accumulate=True)
        if c.moments is not None:
            levels = torch.arange(g.shape[1], device=g.device).expand_as(row)
            c.moments.index_put_((row, levels), moment, accumulate=True)
        if row_moments is not None:
            row_moments.index_put_((row,), moment, accumulate=True)
        if self._column_moments is not None:
            of_prefix = self._column_moments[block.prefix]
            of_prefix.index_put_((column,), moment.double(), accumulate=True)
        assert block.gradient is not None
        g = g if block.unit is None else g * block.unit
        block.gradient.index_put_((row, column), g.to(block.gradient.dtype), accumulate=True)

    def _add_products(self, item: Rows, row_moments: Tensor | None) -> None:
        needs, batch = self.needs, self.batch
        gradients = [block.gradient for block in item.blocks if block.gradient is not None]
        for p in reversed(range(len(gradients) - 1)):
            gradients[p].add_(gradients[p + 1])
        queries, m = item.queries, batch.candidates.shape[0]
        for block in item.blocks:
            if needs.scale and block.dots is not None:
                self._d_scale += block.dots.sum(dtype=torch.float64)
        d_queries = None
        if needs.queries:
            d_queries = self.d_queries[item.start : item.stop, : batch.prefixes[-1]]
        elif self._scale_from == "queries":
            d_queries = self.passes.empty(*queries.values.shape)
        first = 0
        for p, (g, last) in enumerate(zip(gradients, batch.prefixes, strict=True)):
            here = slice(first, last)
            d_candidates = self.d_candidates[:, here] if needs.candidates else None
            values = queries.values[:, here]
            tiles = self._tiles(item, g, p)
            if tiles is not None:
                if d_candidates is not None and item.start == 0:
                    d_candidates.zero_()
                if d_candidates is not None:
                    tiles.candidates_(self.passes, d_candidates, values)
                if d_queries is not None:  # whose memory the queries may have been in
                    tiles.queries_(self.passes, d_queries[:, here], self.candidates.values[:, here])
            else:
                if d_candidates is not None:
                    so_far = d_candidates if item.start > 0 else None
                    self.passes.product_(d_candidates, g[:, :m].t(), values, add=so_far)
                if d_queries is not None:
                    self.passes.product_(d_queries[:, here], g, self.candidates.values[:, here])
            first = last
        if d_queries is not None:
            dots = queries.finish_(d_queries, batch.prefixes, row_moments, self.passes, self._unit)
            if self._scale_from == "queries":
                self._d_scale += dots.sum(dtype=torch.float64)

    def _tiles(self, item: Rows, gradient: Tensor, prefix: int) -> TileProducts | None:
        """The products of a block without what is negligible; None: of all of it."""
        below = self._blocks.negligible
        if below is None:
            return None
        inverse = item.queries.inverse, self.candidates.inverse
        of_rows, of_columns = (None if x is None else x[prefix:].amin(dim=0) for x in inverse)
        return TileProducts(gradient, below, of_rows, of_columns)

    @property
    def _scale_from(self) -> str:
        """What gives the gradient of the scale: the passes, or the gradients of the queries, or of
        the candidates. These cost no further product, but have none of the memory.
        """
        needs, memory = self.needs, self.batch.memory
        if not needs.scale:
            return "nothing"
        if self._blocks.with_dots:
            return "passes"
        queries = needs.queries or not needs.candidates or memory is not None
        return "queries" if queries else "candidates"

    def finish(self) -> Gradients:
        batch, needs = self.batch, self.needs
        m = batch.candidates.shape[0]
        if needs.candidates:
            moments = self._column_moments
            dots = self.candidates.rows(0, m).finish_(
                self.d_candidates[:, : batch.prefixes[-1]],
                batch.prefixes,
                None if moments is None else moments[:, :m].to(batch.dtype),
                self.passes,
                self._unit,
            )
            if self._scale_from == "candidates":
                self._d_scale += dots.sum(dtype=torch.float64)
        d_factors = batch.scale.new_empty(0)
        if self._factor_moments is not None and batch.factors is not None:
            d_factors = (self._factor_moments / batch.factors.double()).to(batch.dtype)
        return Gradients(
            self.d_queries, self.d_candidates, self._d_scale.to(batch.dtype), d_factors
        )
