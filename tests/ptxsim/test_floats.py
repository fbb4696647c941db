"""Floating-point arithmetic and comparisons, against NumPy and exact fractions."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest

from .build import compiler
from .handwritten import Row, check_rows, module
from .kernel import Kernel
from .rounding import Format, decode, nearest

pytestmark = pytest.mark.skipif(compiler() is None, reason="g++ is not on the PATH")

Floats = npt.NDArray[np.floating]
THREADS = 512  # every pair of 16 extreme values, then any values
_APPROXIMATE = 1e-6
_PREFIX = {2: "h", 4: "", 8: "d"}


def operands(dtype: type[np.floating]) -> tuple[Floats, ...]:
    """a, b, c [threads]."""
    info = np.finfo(dtype)
    subnormal, tiny = info.smallest_subnormal, info.tiny
    edges = [0, -0.0, 1, -1, 1.5, -2.5, 0.1, np.inf, -np.inf, np.nan, info.max, tiny, -tiny,
             subnormal, -123 * subnormal, tiny - subnormal]  # fmt: skip
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal((3, THREADS)) * 4).astype(dtype)
    a[:256], b[:256] = np.array(list(product(edges, edges)), dtype).T
    c[:256] = rng.choice(np.array(edges, dtype), 256)
    c[256:384] = -a[256:384] * b[256:384]  # a fused product leaves its rounding error
    return a, b, c


def half_operands(kind: Format) -> tuple[npt.NDArray[np.uint16], ...]:
    """Bits of a, b, c [threads]; c makes ties and near-ties of some products."""
    one, infinity = (0x3C00, 0x7C00) if kind == "f16" else (0x3F80, 0x7F80)
    smallest = 0x0400 if kind == "f16" else 0x0080
    edges = [
        0, 0x8000, one, one | 0x8000, one + 1, infinity, infinity | 0x8000, infinity + 99,
        1, 0x8001, smallest, smallest - 1, smallest | 0x8000, infinity - 1, one + 3, one - 1,
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    a, b, c = bits = rng.integers(0, infinity, (3, THREADS), np.uint16)
    bits |= rng.integers(0, 2, bits.shape, np.uint16) << 15
    a[:256], b[:256] = np.array(list(product(edges, edges)), np.uint16).T
    factors = [[3], [683]] if kind == "f16" else [[7], [37]]  # a product between two values
    a[256:320], b[256:320], c[256:320] = nearest([*factors, [0]], kind)
    c[257:320:2] = rng.choice([1, 2, 9, 0x8001, 0x8002], 32)
    return a, b, c


def flushed(function: Callable[..., Floats]) -> Callable[..., Floats]:
    def flush(x: Floats) -> Floats:
        return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)

    return lambda *inputs: flush(function(*map(flush, inputs)))


def fused(a: Floats, b: Floats, c: Floats) -> Floats:
    """a b + c in float64 that another rounding, to a shorter format, does not spoil: where it is
    inexact its last bit is odd."""

    def one(x: float, y: float, z: float) -> float:
        if not all(map(math.isfinite, (x, y, z))):
            return float(np.float64(x) * y + z)
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        near = float(exact)
        if Fraction(near) == exact:
            return near if exact else float(np.float64(x) * y + z)  # with the sign of the zero
        if np.float64(near).view(np.uint64) % 2 == 0:
            near = math.nextafter(near, math.inf if exact > near else -math.inf)
        return near

    return np.array([one(*map(float, each)) for each in zip(a, b, c, strict=True)])


def rounding_error(a: Floats, b: Floats) -> Floats:
    """a b - round(a b)."""

    def one(x: float, y: float) -> float:
        if math.isfinite(x * y):
            return float(Fraction(x) * Fraction(y) - Fraction(x * y))
        return -x * y if math.isfinite(x) and math.isfinite(y) else math.nan

    return np.array([one(*map(float, each)) for each in zip(a, b, strict=True)])


def saturated(x: Floats) -> Floats:
    return np.where(x > 0, np.minimum(x, x.dtype.type(1)), x.dtype.type(0))


def extreme(name: str) -> Callable[[Floats, Floats], Floats]:
    """max or min and its modifiers, from the definition in the PTX manual."""

    def function(a: Floats, b: Floats) -> Floats:
        sign = np.signbit(a) ^ np.signbit(b)
        if "xorsign" in name:
            a, b = np.abs(a), np.abs(b)
        first = (a > b) | ((a == b) & ~np.signbit(a))  # +0 is more than -0
        result = np.where(first if name.startswith("max") else ~first, a, b)
        result = np.where(np.isnan(a), b, np.where(np.isnan(b), a, result))
        if ".NaN" in name:
            result = np.where(np.isnan(a) | np.isnan(b), np.nan, result).astype(a.dtype)
        return np.copysign(result, np.where(sign, -1, 1)) if "xorsign" in name else result

    return function


def row(text: str, dtype: type[np.floating], function: Callable[..., npt.ArrayLike],
        rtol: float = 0) -> Row:  # fmt: skip
    """`$x`, `$a`, ... are registers of the size of the type; a result of bool is 32 bits."""
    inputs = operands(dtype)[: sum(f"${name}" in text for name in "abc")]
    with np.errstate(all="ignore"):
        expected = np.asarray(function(*inputs))
        expected = expected.astype(np.uint32 if expected.dtype == bool else dtype)
    text = text.replace("$x", f"%{_PREFIX[expected.itemsize]}x")
    return Row(text.replace("$", f"%{_PREFIX[inputs[0].itemsize]}"), inputs, expected, rtol)


def half_rows(
    text: str, kind: Format, function: Callable[..., npt.ArrayLike], tiny: float = 0
) -> list[Row]:
    """The operation on one half and on two in a register.

    tiny: what is less in magnitude is zero, of the inputs and of the result.
    """
    bits = half_operands(kind)[: sum(f"${name}" in text for name in "abc")]

    def flush(x: npt.ArrayLike) -> Floats:
        x = np.asarray(x)
        return np.where(np.abs(x) < tiny, np.copysign(0, x), x)

    with np.errstate(all="ignore"):
        result = flush(function(*(flush(decode(b, kind)) for b in bits)))
        expected = nearest(result, kind).astype(np.uint16)

    def pair(low: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint32]:
        return np.roll(low, 7).astype(np.uint32) << 16 | low

    return [
        Row(text.replace("$", "%h"), bits, expected),
        Row(text.replace("$", "%").replace(kind, f"{kind}x2"), tuple(map(pair, bits)),
            pair(expected)),
    ]  # fmt: skip


EXTREMES = [
    f"{name}{modifiers}" for name in ("max", "min")
    for modifiers in ("", ".NaN", ".xorsign.abs", ".NaN.xorsign.abs")
]  # fmt: skip
SINGLE = [
    *(row(f"{op}.f32 $x, $a, $b;", np.float32, function)
      for op, function in (("add", np.add), ("add.rn", np.add), ("sub", np.subtract),
                           ("mul.rn", np.multiply), ("div.rn", np.divide))),
    *(row(f"{op}.ftz.f32 $x, $a, $b;", np.float32, flushed(function))
      for op, function in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply))),
    row("add.sat.f32 $x, $a, $b;", np.float32, lambda a, b: saturated(a + b)),
    row("mul.ftz.sat.f32 $x, $a, $b;", np.float32, flushed(lambda a, b: saturated(a * b))),
    row("fma.rn.f32 $x, $a, $b, $c;", np.float32, fused),
    row("fma.rn.ftz.f32 $x, $a, $b, $c;", np.float32,
        flushed(lambda a, b, c: fused(a, b, c).astype(np.float32))),
    row("mad.rn.f32 $x, $a, $b, $c;", np.float32, fused),
    row("div.full.f32 $x, $a, $b;", np.float32, np.divide, _APPROXIMATE),
    row("div.full.ftz.f32 $x, $a, $b;", np.float32, flushed(np.divide), _APPROXIMATE),
    row("sqrt.rn.f32 $x, $a;", np.float32, np.sqrt),
    row("sqrt.approx.ftz.f32 $x, $a;", np.float32, flushed(np.sqrt), _APPROXIMATE),
    row("rcp.rn.f32 $x, $a;", np.float32, lambda a: 1 / a),
    row("rcp.approx.ftz.f32 $x, $a;", np.float32, flushed(lambda a: 1 / a), _APPROXIMATE),
    row("rsqrt.approx.f32 $x, $a;", np.float32, lambda a: 1 / np.sqrt(a), _APPROXIMATE),
    row("ex2.approx.f32 $x, $a;", np.float32, np.exp2, _APPROXIMATE),
    row("ex2.approx.ftz.f32 $x, $a;", np.float32, flushed(np.exp2), _APPROXIMATE),
    row("lg2.approx.f32 $x, $a;", np.float32, np.log2, _APPROXIMATE),
    row("lg2.approx.ftz.f32 $x, $a;", np.float32, flushed(np.log2), _APPROXIMATE),
    row("sin.approx.f32 $x, $a;", np.float32, lambda a: np.sin(a.astype(float)), _APPROXIMATE),
    row("cos.approx.f32 $x, $a;", np.float32, lambda a: np.cos(a.astype(float)), _APPROXIMATE),
    row("tanh.approx.f32 $x, $a;", np.float32, np.tanh, _APPROXIMATE),
    row("neg.f32 $x, $a;", np.float32, np.negative),
    row("abs.ftz.f32 $x, $a;", np.float32, flushed(np.abs)),
    row("copysign.f32 $x, $a, $b;", np.float32, lambda a, b: np.copysign(b, a)),
    *(row(f"{name}.f32 $x, $a, $b;", np.float32, extreme(name)) for name in EXTREMES),
    row("max.ftz.f32 $x, $a, $b;", np.float32, flushed(extreme("max"))),
    row("min.ftz.NaN.f32 $x, $a, $b;", np.float32, flushed(extreme("min.NaN"))),
]  # fmt: skip
DOUBLE = [
    *(row(f"{op}.f64 $x, $a, $b;", np.float64, function)
      for op, function in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply),
                           ("div.rn", np.divide), ("max", extreme("max")),
                           ("min", extreme("min")))),
    row("mul.f64 %d1, $a, $b; neg.f64 %d1, %d1; fma.rn.f64 $x, $a, $b, %d1;", np.float64,
        rounding_error),
    row("sqrt.rn.f64 $x, $a;", np.float64, np.sqrt),
    row("rcp.rn.f64 $x, $a;", np.float64, lambda a: 1 / a),
    row("abs.f64 $x, $a;", np.float64, np.abs),
]  # fmt: skip
HALVES = [
    half
    for kind in ("f16", "bf16")
    for text, function in (
        (f"add.rn.{kind} $x, $a, $b;", np.add),
        (f"sub.{kind} $x, $a, $b;", np.subtract),
        (f"mul.{kind} $x, $a, $b;", np.multiply),
        (f"fma.rn.{kind} $x, $a, $b, $c;", fused),
        (f"fma.rn.relu.{kind} $x, $a, $b, $c;",
         lambda a, b, c: extreme("max.NaN")(fused(a, b, c), np.zeros(THREADS))),
        (f"neg.{kind} $x, $a;", np.negative),
        (f"abs.{kind} $x, $a;", np.abs),
        *((f"{name}.{kind} $x, $a, $b;", extreme(name)) for name in EXTREMES),
    )
    for half in half_rows(text, kind, function)
] + [
    *half_rows("add.sat.f16 $x, $a, $b;", "f16", lambda a, b: saturated(a + b)),
    *half_rows("ex2.approx.f16 $x, $a;", "f16", np.exp2),
    *half_rows("ex2.approx.ftz.bf16 $x, $a;", "bf16", np.exp2, 2.0**-126),
    *half_rows("mul.ftz.f16 $x, $a, $b;", "f16", np.multiply, 2.0**-14),
    *half_rows("tanh.approx.bf16 $x, $a;", "bf16", np.tanh),
]  # fmt: skip


def compared(name: str) -> Callable[[Floats, Floats], npt.NDArray[np.bool_]]:
    ordered = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
               "gt": np.greater, "ge": np.greater_equal}  # fmt: skip

    def function(a: Floats, b: Floats) -> npt.NDArray[np.bool_]:
        nan = np.isnan(a) | np.isnan(b)
        if name in ("num", "nan"):
            return nan == (name == "nan")
        return np.where(nan, name.endswith("u"), ordered[name.removesuffix("u")](a, b))

    return function


_P0 = "selp.u32 $x, 1, 0, %p0;"
_BOTH = "selp.u32 %r0, 1, 0, %p0; selp.u32 %r1, 2, 0, %p1; or.b32 $x, %r0, %r1;"
_NAMES = [f"{c}{u}" for c in ("eq", "ne", "lt", "le", "gt", "ge") for u in ("", "u")]
COMPARISONS = [
    *(row(f"setp.{name}.{kind} %p0, $a, $b; {_P0}", dtype, compared(name))
      for kind, dtype in (("f32", np.float32), ("f64", np.float64), ("f16", np.float16))
      for name in (*_NAMES, "num", "nan")),
    row(f"setp.gt.ftz.f32 %p0, $a, 0f00000000; {_P0}", np.float32,
        lambda a: a >= np.finfo(np.float32).tiny),
    *(row(f"testp.{name}.f32 %p0, $a; {_P0}", np.float32, function)
      for name, function in (
          ("finite", np.isfinite), ("infinite", np.isinf), ("notanumber", np.isnan),
          ("number", lambda a: ~np.isnan(a)),
          ("normal", lambda a: np.isfinite(a) & ((abs(a) >= np.finfo(a.dtype).tiny) | (a == 0))),
          ("subnormal", lambda a: (abs(a) < np.finfo(a.dtype).tiny) & (a != 0)))),
    row("setp.lt.f32 %p0, $a, $b; selp.f32 $x, $a, $b, %p0;", np.float32,
        lambda a, b: np.where(a < b, a, b)),
]  # fmt: skip


@pytest.mark.parametrize(
    "rows", [SINGLE, DOUBLE, HALVES, COMPARISONS], ids=["f32", "f64", "halves", "setp"]
)
def test_floats(rows: list[Row]) -> None:
    check_rows(rows)


# No result is 0, whose sign would depend on the direction.
_DIRECTED = """
.visible .entry directed(.param .u64 x, .param .u64 y) {
    .reg .b32 %r<8>; .reg .b64 %x, %y, %d<4>;
    ld.param.u64 %x, [x]; ld.param.u64 %y, [y];
    mov.u32 %r0, %tid.x; mul.wide.u32 %d0, %r0, 12; add.s64 %x, %x, %d0;
    mul.wide.u32 %d1, %r0, 8; add.s64 %y, %y, %d1;
    ld.global.f32 %r1, [%x]; ld.global.f32 %r2, [%x+4]; ld.global.f32 %r3, [%x+8];
    fma.DIRECTION.f32 %r4, %r1, %r2, %r3; st.global.f32 [%y], %r4;
    SIGN.DIRECTION.f32 %r5, %r1, %r3; st.global.f32 [%y+4], %r5;
    ret;
}
"""


def directed(exact: Fraction, direction: str) -> np.float32:
    near = np.float32(float(exact))
    towards_zero = "rm" if exact > 0 else "rp"
    down = direction == "rm" or (direction == "rz" and towards_zero == "rm")
    while Fraction(float(near)) > exact if down else Fraction(float(near)) < exact:
        near = np.nextafter(near, np.float32(-np.inf if down else np.inf))
    return near


@pytest.mark.parametrize("direction", ["rm", "rp", "rz"])
@pytest.mark.parametrize("sign", ["add", "sub"])
def test_directed_rounding(direction: str, sign: str) -> None:
    x = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    y = np.zeros((64, 2), np.float32)
    text = _DIRECTED.replace("DIRECTION", direction).replace("SIGN", sign)
    Kernel(module(text), "directed")((1,), (64,), x, y)
    for (a, b, c), (fused_, added) in zip(x.tolist(), y, strict=True):
        other = c if sign == "add" else -c
        assert fused_ == directed(Fraction(a) * Fraction(b) + Fraction(c), direction)
        assert added == directed(Fraction(a) + Fraction(other), direction)
