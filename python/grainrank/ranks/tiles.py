"""Exact ranks without stored similarities: each tile is compared as soon as it is multiplied.

The similarities of the positives come first, each of its own; or, where candidates are few, from
the rows that a thread is at. The products have the same bits wherever a pair stands, so equal
embeddings are ties.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..row_blocks import Block, block_rows
from .blocks import cat, joined, offsets
from .passes import LEVEL_BYTES, Positives, TilePasses
from .streamed import Part, StreamedRows

# Queries for which the candidates are read once, or so many for each thread: more need more memory
# for their counts, up to 64 KiB each.
_QUERIES, _QUERIES_OF_A_THREAD = 1024, 96
# Up to so many candidates, and bytes of them, the similarities of some rows stay in the cache.
_COLUMNS, _PACKED = 2**15, 32 * 2**20
_CANDIDATES = 4 * 2**20  # of candidates at a time: every query reads them anew
_PAIRS = 16 * 2**20  # of candidates of single pairs that are gathered at a time


def sweep_tiles(
    queries: StreamedRows,
    candidates: StreamedRows,
    passes: TilePasses,
    references: int,
    ties: str,
    workspace_mb: float,
) -> tuple[Tensor, ...]:
    """The fields of `PositiveRanks`. `workspace_mb`: of the levels of some rows."""
    m = len(candidates)
    rows = block_rows(len(queries), m * (LEVEL_BYTES + 4 * references), workspace_mb)
    counts, found, aboves = [], [], []
    together = max(_QUERIES, _QUERIES_OF_A_THREAD * torch.get_num_threads())
    for first in range(0, len(queries), together):
        q = queries.read(first, min(first + together, len(queries)))
        count, positives = _listed(q.values, m, passes, first, rows)
        ignored = bool((count.sum(dim=1) < m).any())
        if candidates.in_place and m <= _COLUMNS and m * candidates.row_bytes <= _PACKED:
            everything = candidates.read(0, m)
            aboves.append(passes.row_ranks(q, positives, ties, first, ignored, everything))
            _check_order(positives, first)
        else:
            positives = positives._replace(
                similarity=_similarities(q, candidates, positives, passes)
            )
            _check_order(positives, first)
            parts = ((a, candidates.read(a, b)) for a, b in candidates.chunks(_CANDIDATES))
            aboves.append(passes.tile_ranks(q, positives, ties, first, m, ignored, parts))
        counts.append(count)
        found.append(positives)
    return (*joined(found), cat(aboves), cat(counts))


def _listed(
    q: Tensor, m: int, passes: TilePasses, first: int, rows: int
) -> tuple[Tensor, Positives]:
    """The pairs of each level `[R, L + 1]`, and the positives without their similarities."""
    counts, parts = [], []
    for start in range(0, len(q), rows):
        here = q[start : start + rows]
        block = Block(None, None, here, here.new_empty(m, 0), first + start, 0, None, None, None)
        levels, count = passes.block_levels(block)
        part = passes.positives(block, levels, count)
        counts.append(count)
        parts.append(part._replace(row=part.row + start))
    _, column, level, similarity = joined(parts)
    starts = offsets(cat([part.starts.diff() for part in parts]))
    row = cat([part.row for part in parts])
    return cat(counts), Positives(starts, row, column, level, similarity)


def _check_order(positives: Positives, first: int) -> None:
    """Of the queries from `first` on: no order has a place for a NaN."""
    wrong = positives.similarity.isnan().nonzero()
    if len(wrong) > 0:
        row, column = (int(x[wrong[0]]) for x in (positives.row, positives.column))
        raise ValueError(
            f"queries and candidates must have products that do not overflow, got NaN for query "
            f"{first + row} and candidate {column}; scale them down"
        )


def _similarities(
    q: Part, candidates: StreamedRows, positives: Positives, passes: TilePasses
) -> Tensor:
    """Of the positives, `[P]`."""
    row, column = positives.row, positives.column
    if candidates.in_place:
        return passes.pair_similarities(q, candidates.read(0, len(candidates)), row, column)
    # In the order of the candidates, which may be in a file.
    order = column.argsort(stable=True)
    similarity = passes.empty(len(column))
    pairs = max(1, _PAIRS // candidates.row_bytes)
    for some in order.split(pairs):
        index, local = column[some].unique_consecutive(return_inverse=True)
        similarity[some] = passes.pair_similarities(q, candidates.take(index), row[some], local)
    return similarity
