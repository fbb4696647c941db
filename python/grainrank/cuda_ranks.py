"""The passes over ranks in CUDA C++: kernels/cuda/ behind the contract of `ranks.passes`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _cuda, cuda_launch  # type: ignore[attr-defined]
from .cuda_launch import stream_of
from .cuda_passes import CudaPasses, gradient_of
from .gpu_ranks import find_positives
from .ranks.blocks import level_counts
from .ranks.passes import Positives, SmoothSums
from .ranks.surrogates import Surrogate
from .row_blocks import Block


class CudaRankPasses(CudaPasses):
    """The passes for one batch."""

    def block_levels(self, block: Block) -> tuple[Tensor, Tensor]:
        rows, columns = block.shape
        apart = -(-columns // _cuda.ALIGNMENT) * _cuda.ALIGNMENT
        levels = torch.empty(rows, apart, dtype=torch.int8, device=self._device)
        _cuda.block_levels(
            self._block(block),
            levels=cuda_launch.pointer(levels),
            level_stride=apart,
            stream=stream_of(self._device),
        )
        levels = levels[:, :columns]
        return levels, level_counts(levels, self._batch.levels.max_level)

    def positives(self, block: Block, levels: Tensor, count: Tensor) -> Positives:
        return find_positives(block, levels, count)

    def exact_ranks(self, block: Block, levels: Tensor, positives: Positives, ties: str) -> Tensor:
        shape = self._parts(block, positives)
        above = torch.empty(shape, dtype=torch.int64, device=self._device)
        _cuda.exact_ranks(
            self._block(block),
            _positives(levels, positives),
            ties=int(getattr(_cuda.Ties, ties.upper())),
            splits=shape[0],
            above=cuda_launch.pointer(above),
            stream=stream_of(self._device),
        )
        return above.sum(dim=0)

    def smooth_ranks(
        self, block: Block, levels: Tensor, positives: Positives, step: Surrogate
    ) -> SmoothSums:
        shape = self._parts(block, positives)
        above, slope = self.empty(2, *shape)
        at_least = torch.empty(shape, dtype=torch.int64, device=self._device)
        _cuda.smooth_ranks(
            self._block(block),
            _positives(levels, positives),
            step=_step(step),
            splits=shape[0],
            above=cuda_launch.pointer(above),
            slope=cuda_launch.pointer(slope),
            at_least=cuda_launch.pointer(at_least),
            stream=stream_of(self._device),
        )
        return SmoothSums(above.sum(dim=0), slope.sum(dim=0), at_least.sum(dim=0))

    def rank_gradient_(
        self,
        block: Block,
        levels: Tensor,
        positives: Positives,
        step: Surrogate,
        d_above: Tensor,
        own: Tensor,
    ) -> None:
        _cuda.rank_gradient(
            self._block(block),
            _positives(levels, positives),
            step=_step(step),
            gradient=gradient_of(block),
            d_above=cuda_launch.pointer(d_above),
            own=cuda_launch.pointer(own),
            stream=stream_of(self._device),
        )

    def _parts(self, block: Block, positives: Positives) -> tuple[int, int, int]:
        """The shape of the parts of sums, `[splits, P, L + 1]`."""
        size = len(positives.column)
        splits = _cuda.rank_splits(size, block.shape[1])
        return splits, size, self._batch.levels.max_level + 1


def _positives(levels: Tensor, positives: Positives) -> Any:
    given = positives._asdict()
    addresses = {name: cuda_launch.pointer(tensor) for name, tensor in given.items()}
    return _cuda.Positives(
        levels=cuda_launch.pointer(levels),
        level_stride=levels.stride(0),
        positives=len(positives.column),
        **addresses,
    )


def _step(step: Surrogate) -> Any:
    return _cuda.Step(upper_bound=step.upper_bound, **step.numbers())
