"""The ceilings of a batch's negatives, row block by row block."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .levels import Ceiled, LevelSource
from .reference_block import ReferenceBlock
from .row_blocks import Block

Compared = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class BlockCeilings(NamedTuple):
    rows: Tensor | None = None  # [N], of the block's prefix; None: nothing is ignored
    columns: Tensor | None = None  # [M]
    reference: Tensor | None = None  # [R, M]: what they judge; None: the similarities


class Ceilings:
    """Those of one batch. `compared`: how the backend compares ids."""

    def __init__(self, levels: LevelSource, compared: Compared) -> None:
        self._levels = levels if isinstance(levels, Ceiled) else None
        self._reference: ReferenceBlock | None = None
        #: Ids `[N]`, `[M]`: pairs with equal ones are never ignored.
        self.curated: tuple[Tensor, Tensor] | None = None
        if self._levels is not None:
            if self._levels.reference is not None:
                self._reference = ReferenceBlock(*self._levels.reference)
            if self._levels.curated is not None:
                self.curated = compared(*self._levels.curated)

    def at(self, block: Block) -> BlockCeilings:
        """Valid until the next call."""
        if self._levels is None:
            return BlockCeilings()
        columns, reference = self._levels.columns, None
        if self._reference is not None:
            reference = self._reference.at(block.start, block.start + block.shape[0])
        return BlockCeilings(
            self._levels.rows[block.prefix],
            None if columns is None else columns[block.prefix],
            reference,
        )
