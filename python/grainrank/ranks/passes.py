"""What a backend is asked for: ranks of the positives, and their gradients.

The levels of a row block are computed once and read again for each of its positives, so they are
kept, in a byte each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from ..row_blocks import Block, Passes
from .surrogates import Surrogate

if TYPE_CHECKING:
    from .streamed import Part

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
    """The passes over a row block; scales play no part. Tensors of positives are contiguous."""

    def block_levels(self, block: Block) -> tuple[Tensor, Tensor]:
        """Levels int8 `[R, M + Q]` as the rows see them, valid until the next call, and the pairs
        of each level, int64 `[R, L + 1]`.
        """

    def positives(self, block: Block, levels: Tensor, count: Tensor) -> Positives:
        """The pairs of level 1 and more."""

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


class BlockPasses(RankPasses, Protocol):
    """Passes of exact ranks over a row block whose similarities a product wrote."""

    def exact_ranks(self, block: Block, levels: Tensor, positives: Positives, ties: str) -> Tensor:
        """int64 `[P, L + 1]`: the candidates of each level above each positive."""


@runtime_checkable
class TilePasses(RankPasses, Protocol):
    """Passes of exact ranks that multiply on their own. They know no ceilings.

    `block_levels` and `positives` also take a block without similarities, and then leave those of
    the positives undefined.
    """

    def pair_similarities(
        self, queries: Part, candidates: Part, row: Tensor, column: Tensor
    ) -> Tensor:
        """`[P]`, of single pairs, with the bits that `tile_ranks` compares."""

    def tile_ranks(
        self,
        queries: Part,
        positives: Positives,
        ties: str,
        start: int,
        columns: int,
        ignored: bool,
        candidates: Iterable[tuple[int, Part]],
    ) -> Tensor:
        """int64 `[P, L + 1]`: the candidates of each level above each positive of the queries.

        `start`: of the queries in the batch, which has so many columns. `ignored`: whether pairs
        of level -1 have to be looked for. `candidates`: all of them, some at a time, behind the
        number of the first one.
        """

    def row_ranks(
        self,
        queries: Part,
        positives: Positives,
        ties: str,
        start: int,
        ignored: bool,
        candidates: Part,
    ) -> Tensor:
        """The same where the similarities of some rows with all candidates may be kept; it fills
        those of the positives too. Where one is NaN the counts of its row are undefined.
        """
