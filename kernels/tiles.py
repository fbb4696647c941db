"""One tile of pairs: its similarities, levels and logits. Shared by all kernels.

The formulas are those of csrc/epilogue.h and csrc/logits.h; derived in
python/grainrank/reference.py.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def power_of_two(n):
    """The next one, n included: what `tl.arange` takes."""
    return triton.next_power_of_2(n)


@triton.jit
def _product(
    operands, block_rows, columns, in_rows, in_columns, dtype: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Of rows `[R, D]` and `[M, D]`: (queries, row stride, candidates, row stride, D)."""
    queries, query_stride, candidates, candidate_stride, D = operands
    features = tl.arange(0, BLOCK_D)
    query_at = queries + block_rows[:, None] * query_stride + features[None, :]
    candidate_at = candidates + columns[None, :] * candidate_stride + features[:, None]
    s = tl.zeros((block_rows.shape[0], columns.shape[0]), dtype)
    for first in range(0, D, BLOCK_D):
        inside = first + features < D
        q = tl.load(query_at + first, mask=in_rows[:, None] & inside[None, :], other=0.0)
        c = tl.load(candidate_at + first, mask=inside[:, None] & in_columns[None, :], other=0.0)
        s = tl.dot(q, c, s, input_precision=PRECISION)
    return s


@triton.jit
def similarities(
    operands, row_factors, column_factors, block_rows, columns, in_rows, in_columns,
    dtype: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Of `operands`: the row block `[R, M]` that a vendor product wrote, and its row stride; or the
    rows of the product, which is computed here.
    """
    if len(operands) == 2:
        block, row_stride = operands
        at = block + block_rows[:, None] * row_stride + columns[None, :]
        s = tl.load(at, mask=in_rows[:, None] & in_columns[None, :], other=0.0)
    else:
        s = _product(operands, block_rows, columns, in_rows, in_columns, dtype, PRECISION, BLOCK_D)
    if row_factors is not None:
        row = tl.load(row_factors + block_rows, mask=in_rows, other=0.0)
        column = tl.load(column_factors + columns, mask=in_columns, other=0.0)
        s = s * (row[:, None] * column[None, :])
    return s


@triton.jit
def store_gradient(
    gradient, g, row_factors, column_factors, block_rows, columns, in_rows, in_columns
):
    """Of the product: that of the similarities times their factors. `gradient`: the row block, its
    row stride, and the unit that float16 is written in, or None.
    """
    block, row_stride, unit = gradient
    if row_factors is not None:
        row = tl.load(row_factors + block_rows, mask=in_rows, other=0.0)
        column = tl.load(column_factors + columns, mask=in_columns, other=0.0)
        g = g * (row[:, None] * column[None, :])
    if unit is not None:
        # A row of length 0 has a factor of 1e12: its gradient is as large as float16 can be.
        every: tl.constexpr = tl.PropagateNan.ALL
        g = tl.clamp(g * tl.load(unit), -65504.0, 65504.0, propagate_nan=every)
    at = block + block_rows[:, None] * row_stride + columns[None, :]
    mask = in_rows[:, None] & in_columns[None, :]
    tl.store(at, g.to(block.dtype.element_ty), mask=mask)


@triton.jit
def by_level(table, lines, mask, other, level, LEVELS: tl.constexpr, AXIS: tl.constexpr):
    """The entry of the pair's level, of a table `[X, L + 1]` whose lines are the rows (`AXIS` 0) or
    the columns (1); entry 0 for ignored pairs. `other`: of lines that the mask leaves out.
    """
    at = table + lines * LEVELS
    value = tl.expand_dims(tl.load(at, mask=mask, other=other), 1 - AXIS)
    value = tl.broadcast_to(value, level.shape)
    for k in tl.range(1, LEVELS, num_stages=1, loop_unroll_factor=1):
        entry = tl.expand_dims(tl.load(at + k, mask=mask, other=other), 1 - AXIS)
        value = tl.where(level == k, entry, value)
    return value


@triton.jit
def of_level(table, level, LEVELS: tl.constexpr):
    """The entry of the pair's level, of a table `[L + 1]`; entry 0 for ignored pairs."""
    value = tl.zeros(level.shape, table.dtype.element_ty) + tl.load(table)
    for k in tl.range(1, LEVELS, num_stages=1, loop_unroll_factor=1):
        value = tl.where(level == k, tl.load(table + k), value)
    return value


@triton.jit
def logit_factor(s, level, factors, margin, LEVELS: tl.constexpr):
    """What takes the gradient of a logit to that of `scale * s`."""
    if margin is not None:
        m = tl.load(margin)
        return tl.maximum(tl.where(level > 0, 1.0 + m - s, s + m), 0.0)
    elif factors is not None:
        return of_level(factors, level, LEVELS)
    else:
        return tl.full(s.shape, 1.0, s.dtype)


@triton.jit
def logits(s, level, scale, factors, margin, LEVELS: tl.constexpr):
    """`margin`: of the circle loss, whose logits are not linear in s; or None."""
    if margin is not None:
        m = tl.load(margin)
        factor = logit_factor(s, level, factors, margin, LEVELS)
        return scale * (factor * (s - tl.where(level > 0, 1.0 - m, m)))
    elif factors is not None:
        return scale * logit_factor(s, level, factors, margin, LEVELS) * s
    else:
        return s * scale


@triton.jit
def under_ceiling(
    level, s, ceilings, reference, curated, rows, columns, block_rows, in_rows, in_columns, M,
    BY_COLUMN: tl.constexpr,
):  # fmt: skip
    """Levels as the rows (columns) see them: negatives above the ceiling are ignored."""
    if ceilings is None:
        return level
    else:
        if BY_COLUMN:
            ceiling = tl.load(ceilings + columns, mask=in_columns, other=0.0)[None, :]
        else:
            ceiling = tl.load(ceilings + rows, mask=in_rows, other=0.0)[:, None]
        judged = s
        if reference is not None:
            inside = in_rows[:, None] & in_columns[None, :]
            at = block_rows[:, None] * M + columns[None, :]
            judged = tl.load(reference + at, mask=inside, other=0.0).to(s.dtype)
        above = (level == 0) & (judged > ceiling)
        if curated is not None:
            query_ids = tl.load(curated[0] + rows, mask=in_rows, other=0)
            candidate_ids = tl.load(curated[1] + columns, mask=in_columns, other=0)
            above = above & (query_ids[:, None] != candidate_ids[None, :])
        return tl.where(above, -1, level)


@triton.jit
def softplus(x):
    """log(1 + exp(x)), and its derivative."""
    u = tl.exp(-tl.abs(x))  # never overflows
    one_more = 1.0 + u
    # log1p(u): what 1 + u rounds away is put back.
    kept = tl.where(one_more == 1.0, 1.0, one_more - 1.0)
    rest = tl.where(one_more == 1.0, u, tl.log(one_more) * (u / kept))
    return tl.maximum(x, 0.0) + rest, tl.where(x > 0, 1.0, u) / one_more
