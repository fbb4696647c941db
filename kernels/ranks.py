"""Ranks of the positives of a row block, and the gradient of smooth ones.

The formulas are those of python/grainrank/ranks: its contract is ranks/passes.py, its steps are
ranks/surrogates.py. A row block is read once for each of its positives, with its levels in a byte
each. Positives are the tuple (row, column, level, similarity), `[P]` each, row by row.
"""

import triton
import triton.language as tl

from .levels import tile_levels
from .tiles import similarities, store_gradient, under_ceiling


@triton.jit(do_not_specialize=["first_row", "R"])
def block_levels(
    operands, row_factors, column_factors, sources, exclusions, ceilings, reference, curated,
    levels, first_row, R, M,
    KINDS: tl.constexpr, LARGEST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Writes the levels of a row block as its rows see them, int8 `[R, M]`."""
    # One axis: another has at most 65535 programs.
    column_tiles = tl.cdiv(M, BLOCK_M)
    block_rows = (tl.program_id(0) // column_tiles).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    in_rows = block_rows < R
    rows = first_row + block_rows
    first_column = (tl.program_id(0) % column_tiles).to(tl.int64) * BLOCK_M
    columns = first_column + tl.arange(0, BLOCK_M)
    in_columns = columns < M
    s = _similarities(
        operands, row_factors, column_factors, block_rows, columns, in_rows, in_columns
    )
    level = tile_levels(
        s, sources, KINDS, LARGEST, exclusions, rows, columns, block_rows, in_rows, in_columns,
        first_column, M,
    )  # fmt: skip
    level = under_ceiling(
        level, s, ceilings, reference, curated, rows, columns, block_rows, in_rows, in_columns, M,
        False,
    )  # fmt: skip
    at = levels + block_rows[:, None] * M + columns[None, :]
    tl.store(at, level.to(tl.int8), mask=in_rows[:, None] & in_columns[None, :])


@triton.jit(do_not_specialize=["P", "tiles_per_split"])
def rank_sums(
    operands, row_factors, column_factors, levels, positives, numbers,
    above, slopes, at_least, P, M, tiles_per_split,
    STEP: tl.constexpr, LEVELS: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Sums over the other candidates of each level, `[splits, P, L + 1]`.

    `STEP`: how ties are broken, and the sums are int32 counts of the candidates above; or a smooth
    step with its `numbers`, with sums of its slopes and int32 counts of those not below. A program
    takes one positive, some of the columns and `GROUP` of the levels.
    """
    p = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1).to(tl.int64)
    row, column, own_level, own = _positive(positives, p)
    block_rows = row + tl.arange(0, 1)
    in_rows = block_rows >= 0
    group = tl.program_id(2) * GROUP + tl.arange(0, GROUP)
    SMOOTH: tl.constexpr = STEP == "sigmoid" or STEP == "upper_bound"
    # The sums of each thread: they meet once, behind the loop.
    counts = tl.zeros((GROUP, BLOCK_M), tl.int32)
    if SMOOTH:
        step = _numbers(numbers, STEP == "upper_bound")
        values = tl.zeros((GROUP, BLOCK_M), own.dtype)
        derivatives = tl.zeros((GROUP, BLOCK_M), own.dtype)
    first_tile = split * tiles_per_split
    last_tile = tl.minimum(first_tile + tiles_per_split, tl.cdiv(M, BLOCK_M))
    for tile in range(first_tile, last_tile):
        columns = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        in_columns = columns < M
        s = _similarities(
            operands, row_factors, column_factors, block_rows, columns, in_rows, in_columns
        )
        level = _levels(levels, block_rows, columns, in_columns, M)
        level = tl.where(columns[None, :] == column, -1, level)  # itself
        here = level == group[:, None]
        if SMOOTH:
            x = s - own
            value, slope = _step(x, level < own_level, step, STEP == "upper_bound")
            values += tl.where(here, value, 0.0)
            derivatives += tl.where(here, slope, 0.0)
            counted = x >= 0
        elif STEP == "first":
            counted = (s > own) | ((s == own) & (columns < column)[None, :])
        elif STEP == "last":
            counted = (s > own) | ((s == own) & (columns > column)[None, :])
        elif STEP == "optimistic":
            counted = s > own
        else:
            counted = s >= own
        counts += (here & counted).to(tl.int32)
    at = (split * P + p) * LEVELS + group
    mask = group < LEVELS
    if SMOOTH:
        tl.store(above + at, tl.sum(values, 1), mask=mask)
        tl.store(slopes + at, tl.sum(derivatives, 1), mask=mask)
        tl.store(at_least + at, tl.sum(counts, 1), mask=mask)
    else:
        tl.store(above + at, tl.sum(counts, 1), mask=mask)


# Slices of the gradients of all rows, which begin anywhere: one form of the kernel for all.
@triton.jit(do_not_specialize_on_alignment=["d_above", "own_gradient"])
def rank_gradient(
    operands, row_factors, column_factors, gradient, levels, starts, positives, numbers,
    d_above, own_gradient, M,
    UPPER_BOUND: tl.constexpr, LEVELS: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Writes G, the gradient of the similarities, times the factors of the block.

    A program takes a tile of one row, and walks over the row's positives. `d_above` `[P, L + 1]`;
    `own_gradient` `[P]` is taken from G of the positive itself.
    """
    column_tiles = tl.cdiv(M, BLOCK_M)
    row = (tl.program_id(0) // column_tiles).to(tl.int64)
    block_rows = row + tl.arange(0, 1)
    in_rows = block_rows >= 0
    first_column = (tl.program_id(0) % column_tiles).to(tl.int64) * BLOCK_M
    columns = first_column + tl.arange(0, BLOCK_M)
    in_columns = columns < M
    s = _similarities(
        operands, row_factors, column_factors, block_rows, columns, in_rows, in_columns
    )
    level = _levels(levels, block_rows, columns, in_columns, M)
    step = _numbers(numbers, UPPER_BOUND)
    g = tl.zeros(s.shape, s.dtype)
    for p in range(tl.load(starts + row), tl.load(starts + row + 1)):
        _, column, own_level, own = _positive(positives, p)
        _, slope = _step(s - own, level < own_level, step, UPPER_BOUND)
        # A warp reads the entries of a few levels, which lie side by side.
        d = tl.load(d_above + p * LEVELS + level, mask=level >= 0, other=0.0)
        of_pair = tl.where(level >= 0, d * slope, 0.0)
        g += tl.where(columns[None, :] == column, -tl.load(own_gradient + p), of_pair)
    store_gradient(
        gradient, g, row_factors, column_factors, block_rows, columns, in_rows, in_columns
    )


@triton.jit
def _similarities(operands, row_factors, column_factors, block_rows, columns, in_rows, in_columns):
    """Of the row block that a vendor product wrote: nothing is multiplied here."""
    return similarities(
        operands, row_factors, column_factors, block_rows, columns, in_rows, in_columns,
        operands[0].dtype.element_ty, "", 16,
    )  # fmt: skip


@triton.jit
def _levels(levels, block_rows, columns, in_columns, M):
    """int32 `[1, BLOCK_M]`, -1 outside of the matrix."""
    at = levels + block_rows[:, None] * M + columns[None, :]
    return tl.load(at, mask=in_columns[None, :], other=-1).to(tl.int32)


@triton.jit
def _positive(positives, p):
    """Row in the block, column, level and similarity."""
    rows, columns, levels, values = positives
    row, column = tl.load(rows + p), tl.load(columns + p)
    return row, column, tl.load(levels + p), tl.load(values + p)


@triton.jit
def _numbers(numbers, UPPER_BOUND: tl.constexpr):
    """Of the step: temperature, rho, delta, offset; of the sigmoid the first is all there is."""
    temperature = tl.load(numbers)
    if UPPER_BOUND:
        return temperature, tl.load(numbers + 1), tl.load(numbers + 2), tl.load(numbers + 3)
    else:
        return temperature, temperature, temperature, temperature


@triton.jit
def _step(x, below, numbers, UPPER_BOUND: tl.constexpr):
    """h(x) and its derivative. `below`: where the level is lower than the positive's."""
    temperature, rho, delta, offset = numbers
    u = tl.exp(-tl.abs(x) / temperature)  # never overflows
    value = tl.where(x >= 0, 1.0, u) / (1.0 + u)
    slope = u / ((1.0 + u) * (1.0 + u) * temperature)
    if UPPER_BOUND:
        far = x > delta
        value = tl.where(x > 0, value + 0.5, value)
        value = tl.where(far, rho * (x - delta) + offset, value)
        value = tl.where(below, value, (x >= 0).to(x.dtype))
        slope = tl.where(below, tl.where(far, rho, slope), 0.0)
    return value, slope
