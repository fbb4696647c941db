"""Rows of embeddings: their norms, and gradients back through the normalisation; one program a row.

`PREFIXES` are lengths, ascending, D the last of them. Derived in python/grainrank/reference.py.
"""

import triton
import triton.language as tl

NORM_EPS: tl.constexpr = tl.constexpr(1e-12)


@triton.jit(do_not_specialize=["R"])
def row_norms(x, row_stride, norms, R, PREFIXES: tl.constexpr, BLOCK_D: tl.constexpr):
    """Norms `[P, R]` of rows `[R, D]`."""
    row = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = norms.dtype.element_ty
    squares = tl.zeros((), dtype)
    for p in tl.static_range(len(PREFIXES)):
        for start in range(PREFIXES[p - 1] if p > 0 else 0, PREFIXES[p], BLOCK_D):
            features = start + tl.arange(0, BLOCK_D)
            mask = features < PREFIXES[p]
            values = tl.load(x + row * row_stride + features, mask=mask, other=0.0).to(dtype)
            squares += tl.sum(values * values, 0)
        tl.store(norms + p * R + row, tl.sqrt(squares))


@triton.jit(do_not_specialize=["R"])
def finish_rows(
    d, d_stride, values, value_stride, scale, unit, norms, along, dots, R,
    PREFIXES: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """In place: gradients `[R, D]` of the products' rows, per unit of scale and times `unit`, to
    those of the rows as given; `dots` `[R]`, out: `<values, d>` as it came.
    """
    row = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = dots.dtype.element_ty
    D: tl.constexpr = PREFIXES[len(PREFIXES) - 1]
    product = tl.zeros((), dtype)
    for start in range(0, D, BLOCK_D):
        features = start + tl.arange(0, BLOCK_D)
        mask = features < D
        v = tl.load(values + row * value_stride + features, mask=mask, other=0.0).to(dtype)
        g = tl.load(d + row * d_stride + features, mask=mask, other=0.0)
        product += tl.sum(v * g, 0)
    tl.store(dots + row, product)
    factor = tl.load(scale)
    if unit is not None:
        factor = factor / tl.load(unit)
    if norms is not None:
        norm = tl.load(norms + row)
        inverse = 1.0 / tl.maximum(norm, NORM_EPS)
        part = tl.where(norm < NORM_EPS, 0.0, factor * (product * inverse) * inverse)
    for p in tl.static_range(len(PREFIXES)):
        if along is not None:
            part = tl.load(along + p * R + row)
        for start in range(PREFIXES[p - 1] if p > 0 else 0, PREFIXES[p], BLOCK_D):
            features = start + tl.arange(0, BLOCK_D)
            mask = features < PREFIXES[p]
            g = factor * tl.load(d + row * d_stride + features, mask=mask, other=0.0)
            if norms is not None or along is not None:
                v = tl.load(values + row * value_stride + features, mask=mask, other=0.0)
                g = g - v.to(dtype) * part
            tl.store(d + row * d_stride + features, g, mask=mask)
