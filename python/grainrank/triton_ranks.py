"""The passes over ranks in Triton: kernels/ranks.py behind the contract of `ranks.passes`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from . import triton_launch
from .batch import Batch
from .gpu_ranks import find_positives
from .kernels.ranks import block_levels, rank_gradient, rank_sums
from .ranks.blocks import level_counts
from .ranks.passes import Positives, SmoothSums
from .ranks.surrogates import Surrogate
from .row_blocks import Block
from .triton_passes import TritonPasses, column_splits

WARPS = 4  # of the kernels over positives
TILE_BYTES = 2048  # of the similarities of a tile: 16 for each thread of NVIDIA's
GROUP = 8  # levels that a program has registers for, with twice as many warps for more than four
_NUMBERS = ("temperature", "rho", "delta", "offset")  # in the order of the kernels


class TritonRankPasses(TritonPasses):
    """The passes for one batch. Rows are read once for each positive, so a product is stored."""

    def __init__(self, batch: Batch) -> None:
        if batch.product == "fused":
            raise ValueError(
                'product must be "auto" or "vendor" for ranks, got "fused": every positive is '
                "compared with its row, which has to be stored; leave product out"
            )
        super().__init__(batch._replace(product="vendor"))
        self._columns = TILE_BYTES // self._batch.dtype.itemsize

    def block_levels(self, block: Block) -> tuple[Tensor, Tensor]:
        r, m = block.shape
        launch = self._launch("wide")
        levels = torch.empty(r, m, dtype=torch.int8, device=self._device)
        sources, exclusions, ceilings, _, *judged = self._levels_at(block)
        triton_launch.run(
            block_levels, (triton.cdiv(r, launch.rows) * triton.cdiv(m, launch.columns),),
            *self._product(block), sources, exclusions, ceilings, *judged,
            levels, block.start, r, m, KINDS=self._levels.kinds, LARGEST=self._levels.largest,
            BLOCK_R=launch.rows, BLOCK_M=launch.columns,
            num_warps=launch.warps, num_stages=launch.stages,
        )  # fmt: skip
        return levels, level_counts(levels, self._batch.levels.max_level)

    def positives(self, block: Block, levels: Tensor, count: Tensor) -> Positives:
        return find_positives(block, levels, count)

    def exact_ranks(self, block: Block, levels: Tensor, positives: Positives, ties: str) -> Tensor:
        (above,) = self._sums(block, levels, positives, ties, None, (torch.int32,))
        return above

    def smooth_ranks(
        self, block: Block, levels: Tensor, positives: Positives, step: Surrogate
    ) -> SmoothSums:
        name = "upper_bound" if step.upper_bound else "sigmoid"
        dtypes = self._batch.dtype, self._batch.dtype, torch.int32
        return SmoothSums(*self._sums(block, levels, positives, name, self._numbers(step), dtypes))

    def rank_gradient_(
        self,
        block: Block,
        levels: Tensor,
        positives: Positives,
        step: Surrogate,
        d_above: Tensor,
        own: Tensor,
    ) -> None:
        r, m = block.shape
        assert block.gradient is not None
        starts = positives.starts
        triton_launch.run(
            rank_gradient, (r * triton.cdiv(m, self._columns),),
            *self._product(block), (block.gradient, block.gradient.stride(0), block.unit),
            levels, starts, positives[1:], self._numbers(step), d_above, own, m,
            UPPER_BOUND=step.upper_bound, LEVELS=self._batch.levels.max_level + 1,
            BLOCK_M=self._columns, num_warps=WARPS, num_stages=1,
        )  # fmt: skip

    def _sums(
        self,
        block: Block,
        levels: Tensor,
        positives: Positives,
        step: str,
        numbers: Tensor | None,
        dtypes: tuple[torch.dtype, ...],
    ) -> list[Tensor]:
        """Sums `[P, L + 1]` over the columns: of counts, int64."""
        p, m, width = len(positives.column), block.shape[1], self._batch.levels.max_level + 1
        splits, tiles_per_split = column_splits(p, triton.cdiv(m, self._columns))
        parts = [
            torch.empty(splits, p, width, dtype=dtype, device=self._device) for dtype in dtypes
        ]
        group = min(GROUP, int(triton.next_power_of_2(width)))
        if p > 0:
            triton_launch.run(
                rank_sums, (p, splits, triton.cdiv(width, group)),
                *self._product(block), levels, positives[1:], numbers,
                *parts, *(None for _ in range(len(parts), 3)), p, m, tiles_per_split,
                STEP=step, LEVELS=width, GROUP=group, BLOCK_M=self._columns,
                num_warps=WARPS if group <= 4 else 2 * WARPS, num_stages=1,
            )  # fmt: skip
        return [part.sum(dim=0) for part in parts]

    def _numbers(self, step: Surrogate) -> Tensor:
        numbers = step.numbers()
        return self._scale.new_tensor([numbers[name] for name in _NUMBERS if name in numbers])
