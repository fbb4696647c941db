"""The passes over ranks on the CPU: the C++ of csrc/ behind the contract of `ranks.passes`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _native  # type: ignore[attr-defined]
from .cpu import CpuPasses
from .ranks.passes import Positives, SmoothSums
from .ranks.surrogates import Surrogate
from .row_blocks import Block


class CpuRankPasses(CpuPasses):
    """The passes for one batch."""

    def block_levels(self, block: Block) -> tuple[Tensor, Tensor]:
        rows, columns = block.shape
        levels = torch.empty(rows, columns, dtype=torch.int8)
        count = torch.empty(rows, self._levels.max_level + 1, dtype=torch.int64)
        self._run(_native.block_levels, block, out=levels.data_ptr(), count=count.data_ptr())
        return levels, count

    def positives(self, block: Block, levels: Tensor, count: Tensor) -> Positives:
        ends = count[:, 1:].sum(dim=1).cumsum(dim=0)
        starts = torch.cat([ends.new_zeros(1), ends])
        size = int(starts[-1])
        row, column, level = torch.empty(3, size, dtype=torch.int64).unbind()
        similarity = torch.empty(size, dtype=self._dtype)
        out = self._make("Positives")(
            levels=levels.data_ptr(),
            starts=starts.data_ptr(),
            row=row.data_ptr(),
            column=column.data_ptr(),
            level=level.data_ptr(),
            similarity=similarity.data_ptr(),
        )
        _native.positives(self._set, self._block(block), out)
        return Positives(starts, row, column, level, similarity)

    def exact_ranks(self, block: Block, levels: Tensor, positives: Positives, ties: str) -> Tensor:
        above = self._counts(positives)
        order, ascending = (
            torch.empty_like(positives.column),
            torch.empty_like(positives.similarity),
        )
        slots = len(positives.column) + block.shape[0]
        shape = slots, above.shape[1] + 1, _native.RANK_COUNTERS
        counts = torch.empty(shape, dtype=torch.int32)
        out = self._make("Exact")(
            ties=getattr(_native.Ties, ties.upper()),
            above=above.data_ptr(),
            order=order.data_ptr(),
            sorted=ascending.data_ptr(),
            counts=counts.data_ptr(),
        )
        _native.exact_ranks(self._set, self._block(block), self._ranks(levels, positives), out)
        return above

    def smooth_ranks(
        self, block: Block, levels: Tensor, positives: Positives, step: Surrogate
    ) -> SmoothSums:
        at_least = self._counts(positives)
        above, slope = torch.empty(2, *at_least.shape, dtype=torch.float64).unbind()
        out = self._make("Smooth")(
            step=self._step(step),
            above=above.data_ptr(),
            slope=slope.data_ptr(),
            at_least=at_least.data_ptr(),
        )
        _native.smooth_ranks(self._set, self._block(block), self._ranks(levels, positives), out)
        return SmoothSums(above.to(self._dtype), slope, at_least)

    def rank_gradient_(
        self,
        block: Block,
        levels: Tensor,
        positives: Positives,
        step: Surrogate,
        d_above: Tensor,
        own: Tensor,
    ) -> None:
        d_above, own = d_above.contiguous(), own.contiguous()
        out = self._make("RankGradient")(
            step=self._step(step), d_above=d_above.data_ptr(), own=own.data_ptr()
        )
        _native.rank_gradient(self._set, self._block(block), self._ranks(levels, positives), out)

    def _counts(self, positives: Positives) -> Tensor:
        """Memory for int64 `[P, L + 1]`."""
        return torch.empty(len(positives.column), self._levels.max_level + 1, dtype=torch.int64)

    def _step(self, step: Surrogate) -> Any:
        return self._make("Step")(upper_bound=step.upper_bound, **step.numbers())

    def _ranks(self, levels: Tensor, positives: Positives) -> Any:
        return self._make("Ranks")(
            levels=levels.data_ptr(),
            max_level=self._levels.max_level,
            starts=positives.starts.data_ptr(),
            column=positives.column.data_ptr(),
            level=positives.level.data_ptr(),
            similarity=positives.similarity.data_ptr(),
        )
