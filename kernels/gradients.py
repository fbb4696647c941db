"""The gradient of the logits of a row block, tile by tile."""

import triton
import triton.language as tl

from .levels import tile_levels
from .tiles import by_level, logit_factor, logits, of_level, similarities, softplus, under_ceiling

NOWHERE: tl.constexpr = tl.constexpr(1e30)  # exp(z - this) is 0


@triton.jit
def _of_tables(z, level, tables, lines, mask, LEVELS: tl.constexpr, AXIS: tl.constexpr):
    """G from the tables and gradients (lse, d_lse, neg_lse, d_neg_lse, d_total) of the rows or the
    columns.
    """
    g = tl.zeros(z.shape, z.dtype)
    if tables[1] is not None:
        lse = by_level(tables[0], lines, mask, NOWHERE, level, LEVELS, AXIS)
        d = by_level(tables[1], lines, mask, 0.0, level, LEVELS, AXIS)
        g += d * tl.exp(z - lse)
    if tables[3] is not None:
        lse = by_level(tables[2], lines, mask, NOWHERE, level, LEVELS, AXIS)
        d = by_level(tables[3], lines, mask, 0.0, level, LEVELS, AXIS)
        # Level 0 has no negative part, and exp(-z) of it may be infinite.
        g -= tl.where(level > 0, d * tl.exp(-z - lse), 0.0)
    if tables[4] is not None:
        g += by_level(tables[4], lines, mask, 0.0, level, LEVELS, AXIS)
    return tl.where(level < 0, 0.0, g)


@triton.jit(do_not_specialize=["first_row", "R", "table_columns"])
def gradient_block(
    block, row_stride, row_factors, column_factors, scale, margin,
    sources, exclusions, row_ceilings, column_ceilings, reference, curated,
    channels, level_moments, row_moments, column_moments, first_row, R, M, table_columns,
    KINDS: tl.constexpr, LARGEST: tl.constexpr, LEVELS: tl.constexpr, CIRCLE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Writes G, the gradient of `scale * s`, times the factors of the block, over its similarities.

    Channel: (factors, tables of the rows, tables of the columns, thresholds and gradients of the
    softplus sums), None where there is none. Moments are sums of `G * scale * s`: of the levels of
    channel f, `[F, column tiles, R, L + 1]`; of the rows, `[column tiles, R]`; of the columns,
    `[row tiles, M]`.
    """
    row_tile, column_tile = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    block_rows = row_tile * BLOCK_R + tl.arange(0, BLOCK_R)
    in_rows = block_rows < R
    rows = first_row + block_rows
    first_column = column_tile * BLOCK_M
    columns = first_column + tl.arange(0, BLOCK_M)
    in_columns = columns < M
    with_tables = columns < table_columns
    factor = tl.load(scale)
    s = similarities(
        block, row_stride, row_factors, column_factors, block_rows, columns, in_rows, in_columns
    )
    level = tile_levels(
        sources, KINDS, LARGEST, exclusions, rows, columns, block_rows, in_rows, in_columns,
        first_column, M,
    )  # fmt: skip
    of_rows = under_ceiling(
        level, s, row_ceilings, reference, curated, rows, columns, block_rows, in_rows, in_columns,
        M, False,
    )  # fmt: skip
    of_columns = under_ceiling(
        level, s, column_ceilings, reference, curated, rows, columns, block_rows, in_rows,
        in_columns, M, True,
    )  # fmt: skip
    total = tl.zeros(s.shape, s.dtype)
    scaled = s * factor
    for f in tl.static_range(len(channels)):
        factors, row_tables, column_tables, sums = channels[f]
        z = logits(s, level, factor, factors, margin, LEVELS, CIRCLE)
        g = _of_tables(z, of_rows, row_tables, block_rows, in_rows, LEVELS, 0)
        if column_tables is not None:
            g += _of_tables(z, of_columns, column_tables, columns, with_tables, LEVELS, 1)
        if sums is not None:
            against = by_level(sums[0], block_rows, in_rows, 0.0, of_rows, LEVELS, 0)
            d = by_level(sums[1], block_rows, in_rows, 0.0, of_rows, LEVELS, 0)
            _, slope = softplus(against - z)
            g -= tl.where(of_rows > 0, slope * d, 0.0)
        g = g * logit_factor(s, level, factors, margin, LEVELS, CIRCLE)
        if level_moments is not None:
            moment = g * scaled
            at = ((f * tl.num_programs(1) + column_tile) * R + block_rows) * LEVELS
            for l in tl.static_range(LEVELS):
                # A pair that a ceiling ignores on one side counts where the other side has it.
                here = tl.maximum(level, 0) == l
                of_this = tl.sum(tl.where(here, moment, 0.0), 1)
                tl.store(level_moments + at + l, of_this, mask=in_rows)
        total += g
    if row_moments is not None:
        at = column_tile * R + block_rows
        tl.store(row_moments + at, tl.sum(total * scaled, 1), mask=in_rows)
    if column_moments is not None:
        at = row_tile * M + columns
        tl.store(column_moments + at, tl.sum(total * scaled, 0), mask=in_columns)
    if row_factors is not None:
        row = tl.load(row_factors + block_rows, mask=in_rows, other=0.0)
        column = tl.load(column_factors + columns, mask=in_columns, other=0.0)
        total = total * (row[:, None] * column[None, :])
    inside = in_rows[:, None] & in_columns[None, :]
    tl.store(block + block_rows[:, None] * row_stride + columns[None, :], total, mask=inside)


@triton.jit(do_not_specialize=["first_row", "R", "threshold_stride", "tiles_per_split"])
def softplus_sums(
    block, row_stride, row_factors, column_factors, scale, factors, margin,
    sources, exclusions, row_ceilings, reference, curated,
    thresholds, threshold_stride, weights, values, slopes, first_row, R, M, tiles_per_split,
    KINDS: tl.constexpr, LARGEST: tl.constexpr, LEVELS: tl.constexpr, CIRCLE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Sums over the pairs of a level of softplus(x) and its derivative, `[splits, R, L + 1]`.

    x is `z - threshold` at level 0 and `threshold - z` above. With `weights` `[L + 1]` the gradient
    is written over the similarities; without, the sums are of the positives alone.
    """
    block_rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    in_rows = block_rows < R
    rows = first_row + block_rows
    split = tl.program_id(1).to(tl.int64)
    factor = tl.load(scale)
    value_sums, slope_sums = (), ()
    for _ in tl.static_range(LEVELS):
        value_sums = value_sums + (tl.zeros((BLOCK_R,), block.dtype.element_ty),)
        slope_sums = slope_sums + (tl.zeros((BLOCK_R,), block.dtype.element_ty),)
    first_tile = split * tiles_per_split
    last_tile = tl.minimum(first_tile + tiles_per_split, tl.cdiv(M, BLOCK_M))
    for tile in range(first_tile, last_tile):
        first_column = tile * BLOCK_M
        columns = first_column + tl.arange(0, BLOCK_M).to(tl.int64)
        in_columns = columns < M
        s = similarities(
            block, row_stride, row_factors, column_factors, block_rows, columns, in_rows, in_columns
        )
        level = tile_levels(
            sources, KINDS, LARGEST, exclusions, rows, columns, block_rows, in_rows, in_columns,
            first_column, M,
        )  # fmt: skip
        level = under_ceiling(
            level, s, row_ceilings, reference, curated, rows, columns, block_rows, in_rows,
            in_columns, M, False,
        )  # fmt: skip
        z = logits(s, level, factor, factors, margin, LEVELS, CIRCLE)
        against = tl.zeros(z.shape, z.dtype)
        for l in tl.static_range(LEVELS):
            at = thresholds + block_rows * threshold_stride + l
            of_rows = tl.load(at, mask=in_rows, other=0.0)
            against = tl.where(level == l, of_rows[:, None], against)
        sign = tl.where(level > 0, -1.0, 1.0).to(z.dtype)
        value, slope = softplus(sign * (z - against))
        more_values, more_slopes = (), ()
        for l in tl.static_range(LEVELS):
            here = level == l
            if weights is None and l == 0:
                here = level < -1  # none
            more_values = more_values + (value_sums[l] + tl.sum(tl.where(here, value, 0.0), 1),)
            more_slopes = more_slopes + (slope_sums[l] + tl.sum(tl.where(here, slope, 0.0), 1),)
        value_sums, slope_sums = more_values, more_slopes
        if weights is not None:
            g = tl.where(level < 0, 0.0, sign * slope * of_level(weights, level, LEVELS))
            g = g * logit_factor(s, level, factors, margin, LEVELS, CIRCLE)
            inside = in_rows[:, None] & in_columns[None, :]
            tl.store(block + block_rows[:, None] * row_stride + columns[None, :], g, mask=inside)
    at = (split * R + block_rows) * LEVELS
    for l in tl.static_range(LEVELS):
        tl.store(values + at + l, value_sums[l], mask=in_rows)
        tl.store(slopes + at + l, slope_sums[l], mask=in_rows)
