"""Level data for kernels on a GPU: nothing waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from .levels import DenseLevels, check_level_range


def same_dtype(queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Keys or ids that kernels compare."""
    dtype = torch.promote_types(queries.dtype, candidates.dtype)
    return queries.to(dtype).contiguous(), candidates.to(dtype).contiguous()


def int8_levels(source: DenseLevels) -> Tensor:
    """`[N, M]`. The range is checked, but in a graph that is being captured: checking waits."""
    (levels,) = source.tensors
    if not (levels.is_cuda and torch.cuda.is_current_stream_capturing()):
        check_level_range(levels, source.max_level)
    return levels.to(torch.int8).contiguous()
