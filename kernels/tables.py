"""Level tables of the rows and columns of a row block.

A table is collected as the highest logit of each level, the sum of the exponentials relative to it,
the sum and the count; full ones also of the negated logits, and where the extremes lie. Parts of a
table merge in a fixed order, so that a result is the same in every run.
"""

import triton
import triton.language as tl

from .levels import tile_levels
from .tiles import logits, power_of_two, similarities, under_ceiling

EMPTY: tl.constexpr = tl.constexpr(-1e30)
NOWHERE: tl.constexpr = tl.constexpr(2**30)  # no index in a tile


@triton.jit
def _with_level(table, level, entry):
    """The table `[X, WIDTH]` with the entry `[X]` of one level."""
    here = tl.arange(0, table.shape[1]) == level
    return tl.where(here[None, :], entry[:, None], table)


@triton.jit
def _empty(SIZE: tl.constexpr, dtype: tl.constexpr, WIDTH: tl.constexpr, FULL: tl.constexpr):
    """The parts of no pairs: peaks, sums, totals, counts; dips, sums, places of both."""
    low = tl.full((SIZE, WIDTH), EMPTY, dtype)
    zero = tl.zeros((SIZE, WIDTH), dtype)
    count = tl.zeros((SIZE, WIDTH), tl.int32)
    if FULL:
        nowhere = tl.full((SIZE, WIDTH), -1, tl.int32)
        return low, zero, zero, count, low, zero, nowhere, nowhere
    else:
        return low, zero, zero, count


@triton.jit
def _peaks(z, level, first, LEVELS: tl.constexpr, FULL: tl.constexpr, AXIS: tl.constexpr, empty):
    """The highest of each level along an axis, where it lies, and the sum of the exponentials
    relative to it. `first`: the index at the start of the axis; of equal ones the first counts.
    """
    peaks, sums, places = empty
    reference = tl.zeros(z.shape, z.dtype)
    index = tl.expand_dims(tl.arange(0, z.shape[AXIS]), 1 - AXIS)
    # Loops that are not unrolled: the levels one after another keep within the registers.
    for k in tl.range(0, LEVELS, num_stages=1, loop_unroll_factor=1):
        here = level == k
        peak = tl.max(tl.where(here, z, EMPTY), AXIS)
        at_peak = tl.expand_dims(peak, AXIS)
        peaks = _with_level(peaks, k, peak)
        if FULL:
            place = tl.min(tl.where(here & (z == at_peak), index, NOWHERE), AXIS)
            place = tl.where(place < NOWHERE, place + first, -1)
            places = _with_level(places, k, place)
        reference = tl.where(here, at_peak, reference)
    weight = tl.exp(z - reference)
    for k in tl.range(0, LEVELS, num_stages=1, loop_unroll_factor=1):
        sums = _with_level(sums, k, tl.sum(tl.where(level == k, weight, 0.0), AXIS))
    return peaks, sums, places


@triton.jit
def _parts(
    z, level, first, SIZE: tl.constexpr, LEVELS: tl.constexpr, WIDTH: tl.constexpr,
    FULL: tl.constexpr, AXIS: tl.constexpr,
):  # fmt: skip
    """The parts `[X, WIDTH]` of a tile along an axis."""
    empty = _empty(SIZE, z.dtype, WIDTH, FULL)
    totals, counts = empty[2], empty[3]
    for k in tl.range(0, LEVELS, num_stages=1, loop_unroll_factor=1):
        here = level == k
        totals = _with_level(totals, k, tl.sum(tl.where(here, z, 0.0), AXIS))
        # Summed as floats: a sum of bits goes through memory in some of LLVM's back ends.
        count = tl.sum(tl.where(here, 1.0, 0.0), AXIS)
        counts = _with_level(counts, k, count.to(tl.int32))
    if FULL:
        nothing = empty[0], empty[1], empty[6]
        peaks, sums, peaks_at = _peaks(z, level, first, LEVELS, True, AXIS, nothing)
        dips, negative_sums, dips_at = _peaks(-z, level, first, LEVELS, True, AXIS, nothing)
        return peaks, sums, totals, counts, dips, negative_sums, peaks_at, dips_at
    else:
        nothing = empty[0], empty[1], empty[3]
        peaks, sums, _ = _peaks(z, level, first, LEVELS, False, AXIS, nothing)
        return peaks, sums, totals, counts


@triton.jit
def _merged(a, b, FULL: tl.constexpr):
    """Of equal extremes that of `a` counts."""
    peak = tl.maximum(a[0], b[0])
    sums = a[1] * tl.exp(a[0] - peak) + b[1] * tl.exp(b[0] - peak)
    if FULL:
        dip = tl.maximum(a[4], b[4])
        negative_sums = a[5] * tl.exp(a[4] - dip) + b[5] * tl.exp(b[4] - dip)
        peak_at = tl.where(b[0] > a[0], b[6], a[6])
        dip_at = tl.where(b[4] > a[4], b[7], a[7])
        return peak, sums, a[2] + b[2], a[3] + b[3], dip, negative_sums, peak_at, dip_at
    else:
        return peak, sums, a[2] + b[2], a[3] + b[3]


@triton.jit
def _store(parts, tables, lines, mask, LEVELS: tl.constexpr):
    levels = tl.arange(0, tables[0].shape[1])
    at = lines[:, None] * LEVELS + levels[None, :]
    inside = mask[:, None] & (levels < LEVELS)[None, :]
    for n in tl.static_range(len(tables)):
        tl.store(parts[n] + at, tables[n], mask=inside)


@triton.jit(do_not_specialize=["first_row", "R", "table_columns", "tiles_per_split"])
def level_tables(
    operands, row_factors, column_factors, scale, factors, margin,
    sources, exclusions, row_ceilings, column_ceilings, reference, curated,
    row_parts, column_parts, first_row, R, M, table_columns, tiles_per_split,
    KINDS: tl.constexpr, LARGEST: tl.constexpr, LEVELS: tl.constexpr,
    FULL: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (i, k): row tile i, columns of split k. Writes the parts `[splits, R, L + 1]` of the
    rows and, of the first `table_columns` columns, `[row tiles, table_columns, L + 1]`.
    """
    block_rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    in_rows = block_rows < R
    rows = first_row + block_rows
    split = tl.program_id(1).to(tl.int64)
    factor = tl.load(scale)
    dtype: tl.constexpr = scale.dtype.element_ty
    WIDTH: tl.constexpr = power_of_two(LEVELS)
    so_far = _empty(BLOCK_R, dtype, WIDTH, FULL)
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
        z = logits(s, level, factor, factors, margin, LEVELS)
        of_rows = under_ceiling(
            level, s, row_ceilings, reference, curated, rows, columns, block_rows, in_rows,
            in_columns, M, False,
        )  # fmt: skip
        parts = _parts(z, of_rows, first_column.to(tl.int32), BLOCK_R, LEVELS, WIDTH, FULL, 1)
        so_far = _merged(so_far, parts, FULL)
        if COLUMNS:
            of_columns = under_ceiling(
                level, s, column_ceilings, reference, curated, rows, columns, block_rows, in_rows,
                in_columns, M, True,
            )  # fmt: skip
            first = first_row + tl.program_id(0) * BLOCK_R
            parts = _parts(z, of_columns, first, BLOCK_M, LEVELS, WIDTH, FULL, 0)
            lines = tl.program_id(0).to(tl.int64) * table_columns + columns
            _store(column_parts, parts, lines, columns < table_columns, LEVELS)
    _store(row_parts, so_far, split * R + block_rows, in_rows, LEVELS)


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
            at_peak = tl.load(parts[6] + here, mask=mask, other=-1)
            peak_at = tl.where(higher, at_peak.to(tl.int64), peak_at)
            more_dip = tl.load(parts[4] + here, mask=mask, other=EMPTY)
            bottom = tl.maximum(dip, more_dip)
            negative = negative * tl.exp(dip - bottom)
            negative += tl.load(parts[5] + here, mask=mask, other=0.0) * tl.exp(more_dip - bottom)
            lower = (more_dip > dip) & (of_part > 0)
            at_dip = tl.load(parts[7] + here, mask=mask, other=-1)
            dip_at = tl.where(lower, at_dip.to(tl.int64), dip_at)
            dip = bottom
        peak = top
        number += of_part
        here += size
    there = number > 0
    of_level = peak + tl.log(tl.where(there, weight, 1.0))
    tl.store(lse + at, tl.where(there, of_level, EMPTY), mask=mask)
    tl.store(total + at, sum_, mask=mask)
    tl.store(counts + at, number, mask=mask)
    if FULL:
        positive = there & (at % LEVELS > 0)
        of_level = dip + tl.log(tl.where(positive, negative, 1.0))
        tl.store(neg_lse + at, tl.where(positive, of_level, EMPTY), mask=mask)
        # Maxima pass over a NaN; the total does not.
        whole = sum_ == sum_
        tl.store(highest + at, tl.where(whole, peak, sum_), mask=mask)
        tl.store(lowest + at, tl.where(whole, -dip, sum_), mask=mask)
        tl.store(highest_at + at, peak_at, mask=mask)
        tl.store(lowest_at + at, dip_at, mask=mask)
