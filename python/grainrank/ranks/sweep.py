"""Ranks by the fused passes of a backend, row block by row block."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ..batch import Batch
from ..block_gradients import GradientSums
from ..row_blocks import Block, RowBlocks
from ..table_sets import Gradients, Needs
from .blocks import cat, joined
from .passes import LEVEL_BYTES, BlockPasses, Positives, RankPasses
from .surrogates import Surrogate


def sweep_exact(blocks: Iterable[Block], passes: BlockPasses, ties: str) -> tuple[Tensor, ...]:
    """The fields of `PositiveRanks`: one product."""
    counts, found, above = [], [], []
    for block in blocks:
        levels, count, positives = _judged(block, passes)
        counts.append(count)
        found.append(positives)
        above.append(passes.exact_ranks(block, levels, positives, ties))
    return (*joined(found), cat(above), cat(counts))


def _judged(block: Block, passes: RankPasses) -> tuple[Tensor, Tensor, Positives]:
    """Its levels, the pairs of each, and its positives."""
    levels, count = passes.block_levels(block)
    return levels, count, passes.positives(block, levels, count)


def sweep_smooth(batch: Batch, passes: RankPasses, step: Surrogate) -> tuple[Tensor, ...]:
    """The fields of `PositiveRanks`, and the sums of the slopes `[P, L + 1]`: one product."""
    counts, found, sums = [], [], []
    for item in RowBlocks(batch, passes, besides=LEVEL_BYTES):
        (block,) = item.blocks
        levels, count, positives = _judged(block, passes)
        counts.append(count)
        found.append(positives)
        sums.append(passes.smooth_ranks(block, levels, positives, step))
    above, slope, at_least = (cat(x) for x in zip(*sums, strict=True))
    return (*joined(found), above, cat(counts), at_least, slope)


def sweep_rank_gradients(
    batch: Batch, passes: RankPasses, step: Surrogate, d_above: Tensor, slope: Tensor, needs: Needs
) -> Gradients:
    """For the gradient of `above` and the slopes, `[P, L + 1]`: three products."""
    d_above = d_above.contiguous()
    own = (d_above.to(slope.dtype) * slope).sum(dim=1).to(d_above.dtype)  # [P]
    # A bound of the gradient of a similarity.
    bound = own.abs().sum() + step.steepest * d_above.abs().amax(dim=1).sum()
    blocks = RowBlocks(batch, passes, bound, besides=LEVEL_BYTES)
    gradients = GradientSums(blocks, needs)
    first = 0
    for item in blocks:
        (block,) = item.blocks
        levels, _, positives = _judged(block, passes)
        here = slice(first, first + len(positives.row))
        first = here.stop
        passes.rank_gradient_(block, levels, positives, step, d_above[here], own[here])
        gradients.add_written(item)
    return gradients.finish()
