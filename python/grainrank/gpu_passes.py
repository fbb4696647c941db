"""What the passes of the backends for GPUs have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from .batch import Batch
from .heads import multi_level_nce_gradient
from .products import product_
from .row_blocks import DEFAULT_WORKSPACE, SMALLEST_DEFAULT_BLOCK


class GpuPasses:
    """The passes for one batch: its numbers stay on the device, rows are read as they are given."""

    factored = True
    recomputes_unit = False
    overwrites = False
    skips_tiles = False
    block_bytes = DEFAULT_WORKSPACE
    wanted_rows = SMALLEST_DEFAULT_BLOCK
    product_ = staticmethod(product_)

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.operand_dtype = batch.queries.dtype
        self._device = batch.queries.device
        self._scale = batch.scale.reshape(1).contiguous()
        self._factors = None if batch.factors is None else batch.factors.contiguous()

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=self._batch.dtype, device=self._device)

    @contextlib.contextmanager
    def workspace(self, *shape: int) -> Iterator[Tensor]:
        yield self.empty(*shape)

    def lent(self, *shape: int) -> Tensor:
        return self.empty(*shape)

    def multi_level_nce(
        self, lse: Tensor, count: Tensor, level_weights: Tensor, positives: str, negatives: str
    ) -> tuple[Tensor, Tensor]:
        losses, d_lse = multi_level_nce_gradient(lse, count, level_weights, positives, negatives)
        return losses.sum(dim=0), d_lse

    def _factors_of(self, channel: int) -> Tensor | None:
        return None if self._factors is None else self._factors[channel]
