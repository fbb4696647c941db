"""What the passes over ranks of the backends for GPUs have in common."""

from __future__ import annotations

from torch import Tensor

from .ranks.blocks import offsets
from .ranks.passes import Positives
from .row_blocks import Block


def find_positives(block: Block, levels: Tensor, count: Tensor) -> Positives:
    """The pairs of level 1 and more; their number is waited for."""
    row, column = (levels > 0).nonzero(as_tuple=True)
    assert block.similarities is not None
    similarity = block.similarities[row, column]
    if block.row_factors is not None and block.column_factors is not None:
        # In the order of the kernels: equal similarities have equal bits.
        similarity = similarity * (block.row_factors[row] * block.column_factors[column])
    starts = offsets(count[:, 1:].sum(dim=1))
    level = levels[row, column].long()
    # nonzero gives views of one tensor.
    return Positives(starts, row.contiguous(), column.contiguous(), level, similarity)
