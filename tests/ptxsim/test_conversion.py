"""cvt between all types, against NumPy, Python's integers and a search among all values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from .build import compiler
from .emission import translate_module
from .errors import SimulatorError
from .handwritten import Row, check_rows, kernel, module
from .rounding import Format, decode, nearest

pytestmark = pytest.mark.skipif(compiler() is None, reason="g++ is not on the PATH")

Array = npt.NDArray[np.generic]
THREADS = 256
_DTYPES = {
    "s8": np.int8, "u8": np.uint8, "s16": np.int16, "u16": np.uint16, "s32": np.int32,
    "u32": np.uint32, "s64": np.int64, "u64": np.uint64, "f16": np.float16, "f32": np.float32,
    "f64": np.float64,
}  # fmt: skip
_TO_INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
# A cvt to 8 bits leaves them, extended, in a wider register.
_REGISTERS = {"s8": np.int32, "u8": np.uint32}
_PREFIX = {2: "h", 4: "", 8: "d"}


def floats(dtype: type[np.floating]) -> Array:
    """Halves and their neighbours, values beyond every integer type, ties of shorter formats."""
    rng = np.random.default_rng(0)
    halves = np.arange(-20, 21) / 2
    ranges = [s * 2.0**n for n in (7, 8, 15, 16, 31, 32, 63, 64, 100) for s in (1, -1)]
    extremes = [
        0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-46, 65519.9, 65520, 3.4e38, 3.39e38,
    ]  # fmt: skip
    edges = [*halves, *np.nextafter(halves, 100), *np.nextafter(halves, -100), *ranges]
    edges += extremes
    ties = (1 + rng.integers(0, 2**12, 40) / 2.0**12) * 2.0 ** rng.integers(-30, 17, 40)
    values = rng.standard_normal(THREADS) * 10.0 ** rng.integers(-3, 12, THREADS)
    values[: len(edges) + 40] = *edges, *ties
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def integers(dtype: type[np.integer]) -> Array:
    """Of every magnitude, with ties of the formats that have fewer bits."""
    info = np.iinfo(dtype)
    rng = np.random.default_rng(0)
    values = rng.integers(info.min, info.max, THREADS, dtype, True)
    values >>= rng.integers(0, info.bits, THREADS).astype(dtype)
    near = [s * ((1 << n) + (1 << max(n - b, 0)) + e) for n in range(3, info.bits - 1)
            for b in (8, 24) for e in (-1, 0, 1) for s in (1, -1)]  # fmt: skip
    kept = np.array([v for v in near if info.min <= v <= info.max], dtype)
    values[: THREADS - 40] = rng.permutation(np.resize(kept, 4 * THREADS))[: THREADS - 40]
    values[-5:] = info.min, info.max, 0, 1, info.max - 1
    return values


def source(kind: str) -> Array:
    return integers(_DTYPES[kind]) if kind[0] in "su" else floats(_DTYPES[kind])


def row(opcode: str, inputs: Array, expected: Array) -> Row:
    """A cvt of one input; 8 bits are in a register of 32, with others around them."""
    registers = inputs
    if inputs.itemsize == 1:
        registers = inputs.view(np.uint8).astype(np.uint32) | 0xABCD00
    expected = expected.astype(_REGISTERS.get(opcode.split(".")[-2], expected.dtype))
    a, x = (f"%{_PREFIX[array.itemsize]}{n}" for array, n in ((registers, "a"), (expected, "x")))
    return Row(f"{opcode} {x}, {a};", (registers,), expected)


def to_integer(modifiers: str, to: str, kind: str) -> Row:
    """Clamped; NaN is 0, or the highest bit if one of the types has 64."""
    x, info = source(kind), np.iinfo(_DTYPES[to])
    rounding = modifiers.split(".")[0]
    if "ftz" in modifiers:
        x = np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x)
    wide = kind == "f64" or to in ("s64", "u64")
    nan = (info.min or info.max // 2 + 1) if wide else 0
    rounded = _TO_INTEGRAL[rounding](x)
    expected = [
        nan if np.isnan(v) else info.max if v > info.max else info.min if v < info.min else int(v)
        for v in map(float, rounded)
    ]
    return row(f"cvt.{modifiers}.{to}.{kind}", source(kind), np.array(expected, info.dtype))


def between_integers(to: str, kind: str, saturates: bool = False) -> Row:
    x, info = source(kind), np.iinfo(_DTYPES[to])
    if saturates:
        expected = np.array([max(info.min, min(int(v), info.max)) for v in x], info.dtype)
    else:
        expected = x.astype(info.dtype)
    return row(f"cvt{'.sat' if saturates else ''}.{to}.{kind}", x, expected)


def to_float(opcode: str, function: Callable[[Array], Array] = lambda x: x) -> Row:
    to, kind = opcode.split(".")[-2:]
    with np.errstate(over="ignore"):
        return row(opcode, source(kind), function(source(kind)).astype(_DTYPES[to]))


def to_half(opcode: str, ties: str = "even") -> Row:
    """Exact wherever the input comes from: of 64-bit integers too."""
    to, kind = opcode.split(".")[-2:]
    x = source(kind)
    wide = x.astype(np.float64)
    if kind in ("s64", "u64"):  # a last bit for all that float64 has no room for
        kept = [(abs(int(v)) >> 11 | (int(v) % 2048 > 0)) << 11 for v in x]
        wide = np.where(np.abs(wide) > 2.0**53, np.copysign(np.array(kept, float), wide), wide)
    if "relu" in opcode:
        wide = np.where(wide <= 0, 0.0, wide)
    if "sat" in opcode:
        wide = np.where(wide > 0, np.minimum(wide, 1), 0.0)
    return row(opcode, x, nearest(wide, to, ties).astype(np.uint16))


def packed(to: Format, rounding: str) -> Row:
    """Two floats to two halves; the first comes out on top."""
    a = floats(np.float32)
    b = np.roll(a, 3)
    ties = "zero" if rounding.startswith("rz") else "even"
    values = [np.where((v <= 0) & rounding.endswith("relu"), 0, v) for v in (a, b)]
    high, low = (nearest(v, to, ties) for v in values)
    return Row(f"cvt.{rounding}.{to}x2.f32 %x, %a, %b;", (a, b), high << 16 | low)


def to_tf32(rounding: str, ties: str) -> Row:
    a = floats(np.float32)
    a = np.where(np.isnan(a) | (np.abs(a) > 3.4e38), np.float32(1), a)
    return Row(f"cvt.{rounding}.tf32.f32 %x, %a;", (a,), nearest(a, "tf32", ties) << 13)


def flush(x: Array) -> Array:
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def clamp(x: Array) -> Array:
    return np.where(x > 0, np.minimum(x, 1), 0)


_BF16 = np.random.default_rng(0).integers(0, 2**16, THREADS, np.uint16)
_BF16[:4] = 0, 0x8000, 0x7F80, 1
_BF16 = np.where(_BF16 & 0x7FFF > 0x7F80, np.uint16(0x3F80), _BF16)
TO_INTEGERS = [
    *(to_integer(rounding, to, kind) for rounding in _TO_INTEGRAL for to, kind in (
        ("s32", "f32"), ("u32", "f32"), ("s64", "f32"), ("s32", "f64"), ("s16", "f16"))),
    *(to_integer("rzi", to, kind) for to, kind in (
        ("s8", "f32"), ("u8", "f32"), ("u16", "f32"), ("u64", "f32"), ("u32", "f64"),
        ("s64", "f64"), ("u64", "f64"), ("s32", "f16"), ("s64", "f16"))),
    to_integer("rpi.ftz", "s32", "f32"),
    to_integer("rzi.sat", "s16", "f32"),
    *(between_integers(to, kind) for to, kind in (
        ("s32", "s8"), ("u32", "u8"), ("s8", "s32"), ("u8", "u32"), ("s16", "s32"),
        ("u32", "u16"), ("s64", "s32"), ("u64", "u32"), ("s64", "u32"), ("u32", "u64"),
        ("s32", "s64"), ("u64", "s16"))),
    *(between_integers(to, kind, saturates=True) for to, kind in (
        ("s8", "s32"), ("u8", "s32"), ("u32", "s32"), ("s32", "u32"), ("s16", "u64"),
        ("u64", "s64"))),
]  # fmt: skip
TO_FLOATS = [
    *(to_float(f"cvt.rn.{to}.{kind}") for to, kind in (
        ("f32", "s32"), ("f32", "u32"), ("f32", "s64"), ("f32", "u64"), ("f32", "u16"),
        ("f32", "s8"), ("f64", "s32"), ("f64", "u64"), ("f32", "f64"), ("f16", "s32"),
        ("f16", "u8"))),
    *(to_float(f"cvt.{to}.{kind}") for to, kind in (
        ("f64", "f32"), ("f32", "f16"), ("f64", "f16"))),
    *(to_float(f"cvt.{name}.f32.f32", function) for name, function in _TO_INTEGRAL.items()),
    to_float("cvt.rmi.f64.f64", np.floor),
    to_float("cvt.ftz.f32.f32", flush),
    to_float("cvt.sat.f32.f32", clamp),
    to_float("cvt.rn.ftz.f32.f64", lambda x: flush(x.astype(np.float32))),
    to_float("cvt.rn.sat.f32.s32", clamp),
    row("cvt.f32.bf16", _BF16, decode(_BF16, "bf16").astype(np.float32)),
    *(to_half(f"cvt.rn.{to}.{kind}") for to in ("f16", "bf16")
      for kind in ("f32", "f64", "s32", "u16", "s64", "u64")),
    to_half("cvt.rn.relu.f16.f32"),
    to_half("cvt.rn.relu.bf16.f32"),
    to_half("cvt.rn.sat.f16.f32"),
    to_half("cvt.rz.bf16.f32", "zero"),
    *(packed(to, rounding) for to in ("f16", "bf16") for rounding in ("rn", "rn.relu")),
    packed("bf16", "rz"),
    packed("bf16", "rz.relu"),
    to_tf32("rna", "away"),
    to_tf32("rn", "even"),
]  # fmt: skip


@pytest.mark.parametrize("rows", [TO_INTEGERS, TO_FLOATS], ids=["to_integers", "to_floats"])
def test_conversions(rows: list[Row]) -> None:
    check_rows(rows)


@pytest.mark.parametrize(
    "text",
    ["cvt.rz.f32.s32 %r0, %r1;", "cvt.rp.f32.f64 %r0, %d1;", "cvt.rz.f16.f32 %h0, %r1;",
     "cvt.rz.tf32.f32 %r0, %r1;", "cvt.rn.satfinite.e4m3x2.f32 %h0, %r1, %r2;",
     "cvt.s32.f32 %r0, %r1;"],
)  # fmt: skip
def test_what_is_not_simulated(text: str) -> None:
    with pytest.raises(
        SimulatorError, match=r"cannot translate .*(not simulated|without a rounding)"
    ):
        translate_module(module(kernel("converts", (), text)))
