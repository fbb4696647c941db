"""Level sources as the CUDA kernels read them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _cuda, cuda_launch  # type: ignore[attr-defined]
from .gpu_levels import int8_levels, same_dtype
from .level_pointers import LevelPointers
from .levels import DenseLevels, GrainKeys

_VECTOR = 4  # columns that a thread reads together


class CudaLevels(LevelPointers):
    """The level data of one batch, and the arguments for its row blocks."""

    def at(self, start: int, stop: int) -> Any:
        """For the rows `start..stop`; valid until the next call."""
        sources = [_cuda.Source(**leaf) for leaf in self.leaves_at(start, stop)]
        return _cuda.Levels(self.max_level, sources, self.exclusions)

    def compared(self, queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """As int64 where they are given so, else as int32."""
        queries, candidates = same_dtype(queries, candidates)
        if queries.dtype == torch.int64:
            return queries, candidates
        return queries.to(torch.int32), candidates.to(torch.int32)

    def keys(self, source: GrainKeys) -> dict[str, Any]:
        queries, candidates = self.compared(*source.tensors)
        # Unknown keys equal nothing, also one another.
        queries, candidates = queries.masked_fill(queries < 0, -2), candidates.clamp(min=-1)
        # Four keys at a time, whatever M is: what lies behind the last one counts for nothing.
        stride = -(-candidates.shape[0] // _VECTOR) * _VECTOR
        padded = candidates.new_full((candidates.shape[1], stride), -1)
        padded[:, : candidates.shape[0]] = candidates.t()
        return {
            "wide_keys": queries.dtype == torch.int64,
            "query_keys": self.hold(queries),
            "candidate_keys": self.hold(padded),
            "key_stride": stride,
        }

    def dense(self, source: DenseLevels) -> Tensor:
        return int8_levels(source)

    def kind(self, name: str) -> int:
        return int(getattr(_cuda.SourceKind, name))

    def exclusion(self, queries: Tensor, candidates: Tensor) -> Any:
        return _cuda.Ids(self.hold(queries), self.hold(candidates), queries.dtype == torch.int64)

    def address(self, tensor: Tensor) -> int:
        return cuda_launch.pointer(tensor)
