"""What a backend is asked for: ranks of the positives of a row block, and their gradients.

The levels of a row block are computed once and read again for each of its positives, so they are
kept beside the similarities, in a byte each.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from ..row_blocks import Block, Passes
from .surrogates import Surrogate

LEVEL_BYTES = 1  # of a pair


class Positives(NamedTuple):
    """The positives of a row block, row by row."""

    starts: Tensor  # int64 [R + 1]: row r has the positives starts[r] .. starts[r + 1]
    row: Tensor  # int64 [P], of the block
    column: Tensor  # int64 [P], ascending in a row
    level: Tensor  # int64 [P]
    similarity: Tensor  # [P], with the block's factors


class SmoothSums(NamedTuple):
    """Of each positive, over the other candidates of each level, `[P, L + 1]`."""

    above: Tensor  # sums of the step h(s_j - s_p)
    slope: Tensor  # sums of its derivative; may be of a wider dtype
    at_least: Tensor  # int64, how many have s_j >= s_p


class RankPasses(Passes, Protocol):
    """The passes over a row block whose similarities a product wrote; scales play no part."""

    def block_levels(self, block: Block) -> tuple[Tensor, Tensor]:
        """Levels int8 `[R, M + Q]` as the rows see them, valid until the next call, and the pairs
        of each level, int64 `[R, L + 1]`.
        """

    def positives(self, block: Block, levels: Tensor, count: Tensor) -> Positives:
        """The pairs of level 1 and more."""

    def exact_ranks(self, block: Block, levels: Tensor, positives: Positives, ties: str) -> Tensor:
        """int64 `[P, L + 1]`: the candidates of each level above each positive."""

    def smooth_ranks(
        self, block: Block, levels: Tensor, positives: Positives, step: Surrogate
    ) -> SmoothSums:
        """Sums of a smooth step instead."""

    def rank_gradient_(
        self,
        block: Block,
        levels: Tensor,
        positives: Positives,
        step: Surrogate,
        d_above: Tensor,
        own: Tensor,
    ) -> None:
        """Writes the gradient of the product into `block.gradient`.

        G[r, j] = sum over the row's positives p, p != j, of d_above[p, y_j] h'(s_j - s_p)
        G[r, j] -= own[p] where j is the positive p
        with `d_above` `[P, L + 1]` and `own` `[P]`; pairs of level -1 have none.
        """
