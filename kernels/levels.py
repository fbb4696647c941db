"""Levels of the pairs of a tile, for every source: shared by all kernels.

A source is a tuple of the tensors and numbers below, and has a kind; kinds are compile-time
constants. Letters as in the dimension key: N, M, K, L, R. `rows` and `columns` are the
indices of the tile's pairs in the batch, int64; `block_rows` those in the row block.

| kind | tensors and numbers |
| --- | --- |
| `"diagonal"` | |
| `"prefix"`, `"count"` | query keys [N, K], candidate keys [K, M] |
| `"dense"` | levels int8 [N, M] |
| `"sparse"` | row ends [N + 1], ascending columns, levels int8 (the CSR form) |
| `"bands"` | similarities float32 [R, M], thresholds [N, L], and their stride, 0 for one row |
| `"bands_by_column"` | the same with thresholds [M, L] |
"""

import triton
import triton.language as tl


@triton.jit
def _keys(
    source, K: tl.constexpr, PREFIX: tl.constexpr, zero, rows, columns, in_rows, in_columns, M
):
    level = zero
    # Not unrolled: the keys of one grain at a time keep within the registers.
    for k in tl.range(0, K, num_stages=1, loop_unroll_factor=1):
        query_key = tl.load(source[0] + rows * K + k, mask=in_rows, other=-1)
        candidate_key = tl.load(source[1] + k * M + columns, mask=in_columns, other=-1)
        equal = (query_key[:, None] == candidate_key[None, :]) & (query_key >= 0)[:, None]
        if PREFIX:
            equal = equal & (level == k)  # and all keys before
        level += equal.to(tl.int32)
    return level


@triton.jit
def _sparse(source, zero, rows, columns, in_rows, first_column):
    """Walks the entries of each row that lie in the tile: few, where judgements are sparse."""
    ends, indices, levels = source[0], source[1], source[2]
    start = tl.load(ends + rows, mask=in_rows, other=0)
    stop = tl.load(ends + rows + 1, mask=in_rows, other=0)
    # The first entry at or behind the tile's first column, by bisection.
    low, high = start, stop
    width = tl.max(stop - start, 0)
    while width > 0:
        middle = (low + high) // 2
        open_ = low < high
        before = tl.load(indices + middle, mask=open_, other=0) < first_column
        low = tl.where(open_ & before, middle + 1, low)
        high = tl.where(open_ & ~before, middle, high)
        width = width // 2
    level = zero
    last_column = first_column + columns.shape[0]
    at = tl.load(indices + low, mask=low < stop, other=2147483647)
    here = (low < stop) & (at < last_column)
    while tl.max(here.to(tl.int32), 0) > 0:
        value = tl.load(levels + low, mask=here, other=0).to(tl.int32)
        found = (at[:, None] == columns[None, :]) & here[:, None]
        level = tl.where(found, value[:, None], level)
        low += 1
        at = tl.load(indices + low, mask=here & (low < stop), other=2147483647)
        here = here & (low < stop) & (at < last_column)
    return level


@triton.jit
def _bands(
    source, L: tl.constexpr, BY_COLUMN: tl.constexpr, zero, rows, columns, block_rows, inside,
    in_rows, in_columns, M,
):  # fmt: skip
    s = tl.load(source[0] + block_rows[:, None] * M + columns[None, :], mask=inside, other=0.0)
    level = zero
    for k in tl.static_range(L):
        if BY_COLUMN:
            at = source[1] + columns * source[2] + k
            threshold = tl.load(at, mask=in_columns, other=0.0)[None, :]
        else:
            threshold = tl.load(source[1] + rows * source[2] + k, mask=in_rows, other=0.0)[:, None]
        level += (s >= threshold).to(tl.int32)
    return level


@triton.jit
def tile_levels(
    s, sources, KINDS: tl.constexpr, LARGEST: tl.constexpr, exclusions, rows, columns, block_rows,
    in_rows, in_columns, first_column, M,
):  # fmt: skip
    """Levels int32 of a tile, -1 outside of the matrix: the highest of all sources, but -1 where
    any of them or an exclusion, a pair of equal ids, ignores the pair.

    `s`: the similarities of the tile. `LARGEST`: L of each source.
    """
    inside = in_rows[:, None] & in_columns[None, :]
    # Zeros that come from the similarities: so the levels are laid out over the threads as these
    # are, and nothing is exchanged between threads for each of them.
    zero = (tl.abs(s) < 0.0).to(tl.int32)
    level = zero
    ignored = ~inside
    for n in tl.static_range(len(KINDS)):
        source = sources[n]
        if KINDS[n] == "diagonal":
            one = (rows[:, None] == columns[None, :]).to(tl.int32)
        elif KINDS[n] == "prefix" or KINDS[n] == "count":
            one = _keys(
                source, LARGEST[n], KINDS[n] == "prefix", zero, rows, columns, in_rows, in_columns,
                M,
            )  # fmt: skip
        elif KINDS[n] == "dense":
            at = rows[:, None] * M + columns[None, :]
            one = tl.load(source[0] + at, mask=inside, other=0).to(tl.int32)
        elif KINDS[n] == "sparse":
            one = _sparse(source, zero, rows, columns, in_rows, first_column)
        else:
            one = _bands(
                source, LARGEST[n], KINDS[n] == "bands_by_column", zero, rows, columns, block_rows,
                inside, in_rows, in_columns, M,
            )  # fmt: skip
        level = tl.maximum(level, one)
        ignored = ignored | (one < 0)
    for n in tl.static_range(len(exclusions)):
        query_ids = tl.load(exclusions[n][0] + rows, mask=in_rows, other=0)
        candidate_ids = tl.load(exclusions[n][1] + columns, mask=in_columns, other=0)
        ignored = ignored | (query_ids[:, None] == candidate_ids[None, :])
    return tl.where(ignored, -1, level)
