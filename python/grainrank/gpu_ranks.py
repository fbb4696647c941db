"""What the passes over ranks of the backends for GPUs have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from .ranks.passes import Positives
from .row_blocks import Block


def count_levels(levels: Tensor, max_level: int) -> Tensor:
    """int64 `[R, L + 1]`, of levels int8 `[R, M]`."""
    return torch.stack([(levels == k).sum(dim=1) for k in range(max_level + 1)], dim=1)


def find_positives(block: Block, levels: Tensor, count: Tensor) -> Positives:
    """The pairs of level 1 and more; their number is waited for."""
    row, column = (levels > 0).nonzero(as_tuple=True)
    assert block.similarities is not None
    similarity = block.similarities[row, column]
    if block.row_factors is not None and block.column_factors is not None:
        # In the order of the kernels: equal similarities have equal bits.
        similarity = similarity * (block.row_factors[row] * block.column_factors[column])
    ends = count[:, 1:].sum(dim=1).cumsum(dim=0)
    starts = torch.cat([ends.new_zeros(1), ends])
    return Positives(starts, row, column, levels[row, column].long(), similarity)
