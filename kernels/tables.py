"""Level tables of the rows and columns of a row block.

A table is collected as the highest logit of each level, the sum of the exponentials relative to it,
the sum and the count; full ones also of the negated logits, and where the extremes lie. Parts of a
table merge in a fixed order, so that a result is the same in every run.
"""

import triton
import triton.language as tl

from .levels import tile_levels
from .tiles import logits, similarities, under_ceiling

EMPTY: tl.constexpr = tl.constexpr(-1e30)


@triton.jit
def _parts(z, level, at, LEVELS: tl.constexpr, FULL: tl.constexpr, AXIS: tl.constexpr):
    """The parts of a tile along an axis, one entry for each level. `at`: indices along the axis."""
    peaks, sums, totals, counts = (), (), (), ()
    dips, negative_sums, peaks_at, dips_at = (), (), (), ()
    peak_of_pair = tl.zeros(z.shape, z.dtype)
    dip_of_pair = tl.zeros(z.shape, z.dtype)
    for l in tl.static_range(LEVELS):
        here = level == l
        if FULL:
            peak, first = tl.max(
                tl.where(here, z, EMPTY), AXIS, return_indices=True, return_indices_tie_break_left=True
            )
            dip, first_dip = tl.max(
                tl.where(here, -z, EMPTY), AXIS, return_indices=True, return_indices_tie_break_left=True
            )
            dips = dips + (dip,)
            peaks_at = peaks_at + (first.to(tl.int64) + at,)
            dips_at = dips_at + (first_dip.to(tl.int64) + at,)
            dip_of_pair = tl.where(here, tl.expand_dims(dip, AXIS), dip_of_pair)
        else:
            peak = tl.max(tl.where(here, z, EMPTY), AXIS)
        peaks = peaks + (peak,)
        peak_of_pair = tl.where(here, tl.expand_dims(peak, AXIS), peak_of_pair)
    weight = tl.exp(z - peak_of_pair)
    negative = weight
    if FULL:
        negative = tl.exp(-z - dip_of_pair)
    for l in tl.static_range(LEVELS):
        here = level == l
        sums = sums + (tl.sum(tl.where(here, weight, 0.0), AXIS),)
        totals = totals + (tl.sum(tl.where(here, z, 0.0), AXIS),)
        counts = counts + (tl.sum(here.to(tl.int32), AXIS),)
        if FULL:
            negative_sums = negative_sums + (tl.sum(tl.where(here, negative, 0.0), AXIS),)
    return peaks, sums, totals, counts, dips, negative_sums, peaks_at, dips_at


@triton.jit
def _merged(a, b, LEVELS: tl.constexpr, FULL: tl.constexpr):
    """Of equal extremes that of `a` counts."""
    peaks, sums, totals, counts = (), (), (), ()
    dips, negative_sums, peaks_at, dips_at = (), (), (), ()
    for l in tl.static_range(LEVELS):
        peak = tl.maximum(a[0][l], b[0][l])
        peaks = peaks + (peak,)
        sums = sums + (a[1][l] * tl.exp(a[0][l] - peak) + b[1][l] * tl.exp(b[0][l] - peak),)
        totals = totals + (a[2][l] + b[2][l],)
        counts = counts + (a[3][l] + b[3][l],)
        if FULL:
            dip = tl.maximum(a[4][l], b[4][l])
            dips = dips + (dip,)
            first = a[5][l] * tl.exp(a[4][l] - dip)
            negative_sums = negative_sums + (first + b[5][l] * tl.exp(b[4][l] - dip),)
            peaks_at = peaks_at + (tl.where(b[0][l] > a[0][l], b[6][l], a[6][l]),)
            dips_at = dips_at + (tl.where(b[4][l] > a[4][l], b[7][l], a[7][l]),)
    return peaks, sums, totals, counts, dips, negative_sums, peaks_at, dips_at


@triton.jit
def _empty(SIZE: tl.constexpr, dtype: tl.constexpr, LEVELS: tl.constexpr, FULL: tl.constexpr):
    lows, zeros, counts, more_lows, more_zeros, nowhere, nowhere_too = (), (), (), (), (), (), ()
    for _ in tl.static_range(LEVELS):
        lows = lows + (tl.full((SIZE,), EMPTY, dtype),)
        zeros = zeros + (tl.zeros((SIZE,), dtype),)
        counts = counts + (tl.zeros((SIZE,), tl.int32),)
        if FULL:
            more_lows = more_lows + (tl.full((SIZE,), EMPTY, dtype),)
            more_zeros = more_zeros + (tl.zeros((SIZE,), dtype),)
            nowhere = nowhere + (tl.full((SIZE,), -1, tl.int64),)
            nowhere_too = nowhere_too + (tl.full((SIZE,), -1, tl.int64),)
    return lows, zeros, zeros, counts, more_lows, more_zeros, nowhere, nowhere_too


@triton.jit
def _store(parts, tables, at, mask, LEVELS: tl.constexpr, FULL: tl.constexpr):
    for l in tl.static_range(LEVELS):
        for n in tl.static_range(8 if FULL else 4):
            tl.store(parts[n] + at + l, tables[n][l], mask=mask)


@triton.jit(do_not_specialize=["first_row", "R", "table_columns", "tiles_per_split"])
def level_tables(
    block, row_stride, row_factors, column_factors, scale, factors, margin,
    sources, exclusions, row_ceilings, column_ceilings, reference, curated,
    row_parts, column_parts, first_row, R, M, table_columns, tiles_per_split,
    KINDS: tl.constexpr, LARGEST: tl.constexpr, LEVELS: tl.constexpr, CIRCLE: tl.constexpr,
    FULL: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Program (i, k): row tile i, columns of split k. Writes the parts `[splits, R, L + 1]` of the
    rows and, of the first `table_columns` columns, `[row tiles, table_columns, L + 1]`.
    """
    block_rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    in_rows = block_rows < R
    rows = first_row + block_rows
    split = tl.program_id(1).to(tl.int64)
    factor = tl.load(scale)
    so_far = _empty(BLOCK_R, block.dtype.element_ty, LEVELS, FULL)
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
        z = logits(s, level, factor, factors, margin, LEVELS, CIRCLE)
        of_rows = under_ceiling(
            level, s, row_ceilings, reference, curated, rows, columns, block_rows, in_rows,
            in_columns, M, False,
        )  # fmt: skip
        so_far = _merged(so_far, _parts(z, of_rows, first_column, LEVELS, FULL, 1), LEVELS, FULL)
        if COLUMNS:
            of_columns = under_ceiling(
                level, s, column_ceilings, reference, curated, rows, columns, block_rows, in_rows,
                in_columns, M, True,
            )  # fmt: skip
            first = first_row + tl.program_id(0).to(tl.int64) * BLOCK_R
            at = (tl.program_id(0).to(tl.int64) * table_columns + columns) * LEVELS
            parts = _parts(z, of_columns, first, LEVELS, FULL, 0)
            _store(column_parts, parts, at, columns < table_columns, LEVELS, FULL)
    _store(row_parts, so_far, (split * R + block_rows) * LEVELS, in_rows, LEVELS, FULL)


@triton.jit(do_not_specialize=["count", "lines"])
def merge_tables(
    parts, count, lines, lse, total, counts, neg_lse, highest, lowest, highest_at, lowest_at,
    LEVELS: tl.constexpr, FULL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Tables `[X, L + 1]` from `count` parts of each, in their order; X = `lines`."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    size = lines * LEVELS
    mask = at < size
    peak = tl.full((BLOCK,), EMPTY, lse.dtype.element_ty)
    dip = tl.full((BLOCK,), EMPTY, lse.dtype.element_ty)
    weight = tl.zeros((BLOCK,), lse.dtype.element_ty)
    negative = tl.zeros((BLOCK,), lse.dtype.element_ty)
    sum_ = tl.zeros((BLOCK,), lse.dtype.element_ty)
    number = tl.zeros((BLOCK,), tl.int64)
    peak_at = tl.full((BLOCK,), -1, tl.int64)
    dip_at = tl.full((BLOCK,), -1, tl.int64)
    here = at  # in the part
    for _ in range(count):
        more = tl.load(parts[0] + here, mask=mask, other=EMPTY)
        top = tl.maximum(peak, more)
        weight = weight * tl.exp(peak - top)
        weight += tl.load(parts[1] + here, mask=mask, other=0.0) * tl.exp(more - top)
        sum_ += tl.load(parts[2] + here, mask=mask, other=0.0)
        of_part = tl.load(parts[3] + here, mask=mask, other=0).to(tl.int64)
        if FULL:
            # An empty part has neither.
            higher = (more > peak) & (of_part > 0)
            peak_at = tl.where(higher, tl.load(parts[6] + here, mask=mask, other=-1), peak_at)
            more_dip = tl.load(parts[4] + here, mask=mask, other=EMPTY)
            bottom = tl.maximum(dip, more_dip)
            negative = negative * tl.exp(dip - bottom)
            negative += tl.load(parts[5] + here, mask=mask, other=0.0) * tl.exp(more_dip - bottom)
            lower = (more_dip > dip) & (of_part > 0)
            dip_at = tl.where(lower, tl.load(parts[7] + here, mask=mask, other=-1), dip_at)
            dip = bottom
        peak = top
        number += of_part
        here += size
    there = number > 0
    tl.store(lse + at, tl.where(there, peak + tl.log(weight), EMPTY), mask=mask)
    tl.store(total + at, sum_, mask=mask)
    tl.store(counts + at, number, mask=mask)
    if FULL:
        positive = there & (at % LEVELS > 0)
        tl.store(neg_lse + at, tl.where(positive, dip + tl.log(negative), EMPTY), mask=mask)
        tl.store(highest + at, peak, mask=mask)
        tl.store(lowest + at, -dip, mask=mask)
        tl.store(highest_at + at, peak_at, mask=mask)
        tl.store(lowest_at + at, dip_at, mask=mask)
