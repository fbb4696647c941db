"""The gradient of the logits of a row block, tile by tile."""

import triton
import triton.language as tl

from .levels import tile_levels
from .tiles import (
    by_level,
    logit_factor,
    logits,
    of_level,
    power_of_two,
    similarities,
    softplus,
    store_gradient,
    under_ceiling,
)

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
    operands, row_factors, column_factors, scale, margin, gradient,
    sources, exclusions, row_ceilings, column_ceilings, reference, curated,
    channels, level_moments, row_moments, column_moments, first_row, R, M, table_columns,
    KINDS: tl.constexpr, LARGEST: tl.constexpr, LEVELS: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Writes G, the gradient of `scale * s`, times the factors of the block.

    Channel: (factors, tables of the rows, tables of the columns, thresholds and gradients of the
    softplus sums), None where there is none. Moments are sums of `G * scale * s`: of the levels of
    channel f, `[F, column tiles, R, L + 1]`; of the rows, `[column tiles, R]`; of the columns,
    `[row tiles, M]`.
    """
    # One axis: another has at most 65535 programs. Programs that run together share columns.
    row_tiles, column_tiles = tl.cdiv(R, BLOCK_R), tl.cdiv(M, BLOCK_M)
    row_tile = (tl.program_id(0) % row_tiles).to(tl.int64)
    column_tile = (tl.program_id(0) // row_tiles).to(tl.int64)
    block_rows = row_tile * BLOCK_R + tl.arange(0, BLOCK_R)
    in_rows = block_rows < R
    rows = first_row + block_rows
    first_column = column_tile * BLOCK_M
    columns = first_column + tl.arange(0, BLOCK_M)
    in_columns = columns < M
    with_tables = columns < table_columns
    factor = tl.load(scale)
    s = similarities(
        operands, row_factors, column_factors, block_rows, columns, in_rows, in_columns,
        scale.dtype.element_ty, PRECISION, BLOCK_D,
    )  # fmt: skip
    level = tile_levels(
        s, sources, KINDS, LARGEST, exclusions, rows, columns, block_rows, in_rows, in_columns,
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
        z = logits(s, level, factor, factors, margin, LEVELS)
        g = _of_tables(z, of_rows, row_tables, block_rows, in_rows, LEVELS, 0)
        if column_tables is not None:
            g += _of_tables(z, of_columns, column_tables, columns, with_tables, LEVELS, 1)
        if sums is not None:
            against = by_level(sums[0], block_rows, in_rows, 0.0, of_rows, LEVELS, 0)
            d = by_level(sums[1], block_rows, in_rows, 0.0, of_rows, LEVELS, 0)
            _, slope = softplus(against - z)
            g -= tl.where(of_rows > 0, slope * d, 0.0)
        g = g * logit_factor(s, level, factors, margin, LEVELS)
        if level_moments is not None:
            moment = g * scaled
            at = ((f * column_tiles + column_tile) * R + block_rows) * LEVELS
            for k in tl.range(0, LEVELS, num_stages=1, loop_unroll_factor=1):
                # A pair that a ceiling ignores on one side counts where the other side has it.
                here = tl.maximum(level, 0) == k
                of_this = tl.sum(tl.where(here, moment, 0.0), 1)
                tl.store(level_moments + at + k, of_this, mask=in_rows)
        total += g
    if row_moments is not None:
        at = column_tile * R + block_rows
        tl.store(row_moments + at, tl.sum(total * scaled, 1), mask=in_rows)
    if column_moments is not None:
        at = row_tile * M + columns
        tl.store(column_moments + at, tl.sum(total * scaled, 0), mask=in_columns)
    store_gradient(
        gradient, total, row_factors, column_factors, block_rows, columns, in_rows, in_columns
    )


@triton.jit(do_not_specialize=["first_row", "R", "threshold_step", "tiles_per_split"])
def softplus_sums(
    operands, row_factors, column_factors, scale, factors, margin, gradient,
    sources, exclusions, row_ceilings, reference, curated,
    thresholds, threshold_step, weights, values, slopes, first_row, R, M, tiles_per_split,
    KINDS: tl.constexpr, LARGEST: tl.constexpr, LEVELS: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sums over the pairs of a level of softplus(x) and its derivative, `[splits, R, L + 1]`.

    x is `z - threshold` at level 0 and `threshold - z` above; `thresholds` `[R, L + 1]` with step
    1, or `[1, L + 1]` with step 0. With `weights` `[L + 1]` the gradient
    is written; without, the sums are of the positives alone.
    """
    block_rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    in_rows = block_rows < R
    rows = first_row + block_rows
    split = tl.program_id(1).to(tl.int64)
    factor = tl.load(scale)
    dtype: tl.constexpr = scale.dtype.element_ty
    WIDTH: tl.constexpr = power_of_two(LEVELS)
    value_sums = tl.zeros((BLOCK_R, WIDTH), dtype)
    slope_sums = tl.zeros((BLOCK_R, WIDTH), dtype)
    levels = tl.arange(0, WIDTH)
    first_tile = split * tiles_per_split
    last_tile = tl.minimum(first_tile + tiles_per_split, tl.cdiv(M, BLOCK_M))
    for tile in range(first_tile, last_tile):
        first_column = tile * BLOCK_M
        columns = first_column + tl.arange(0, BLOCK_M).to(tl.int64)
        in_columns = columns < M
        s = similarities(
            operands, row_factors, column_factors, block_rows, columns, in_rows, in_columns,
            dtype, PRECISION, BLOCK_D,
        )  # fmt: skip
        level = tile_levels(
            s, sources, KINDS, LARGEST, exclusions, rows, columns, block_rows, in_rows, in_columns,
            first_column, M,
        )  # fmt: skip
        level = under_ceiling(
            level, s, row_ceilings, reference, curated, rows, columns, block_rows, in_rows,
            in_columns, M, False,
        )  # fmt: skip
        z = logits(s, level, factor, factors, margin, LEVELS)
        against = by_level(thresholds, block_rows * threshold_step, in_rows, 0.0, level, LEVELS, 0)
        sign = tl.where(level > 0, -1.0, 1.0).to(z.dtype)
        value, slope = softplus(sign * (z - against))
        for k in tl.range(0 if weights is not None else 1, LEVELS, num_stages=1):
            here = level == k
            of_level_k = levels[None, :] == k
            sums = tl.sum(tl.where(here, value, 0.0), 1)
            value_sums += tl.where(of_level_k, sums[:, None], 0.0)
            sums = tl.sum(tl.where(here, slope, 0.0), 1)
            slope_sums += tl.where(of_level_k, sums[:, None], 0.0)
        if weights is not None:
            g = tl.where(level < 0, 0.0, sign * slope * of_level(weights, level, LEVELS))
            g = g * logit_factor(s, level, factors, margin, LEVELS)
            store_gradient(
                gradient, g, row_factors, column_factors, block_rows, columns, in_rows, in_columns
            )
    at = (split * R + block_rows)[:, None] * LEVELS + levels[None, :]
    mask = in_rows[:, None] & (levels < LEVELS)[None, :]
    tl.store(values + at, value_sums, mask=mask)
    tl.store(slopes + at, slope_sums, mask=mask)
