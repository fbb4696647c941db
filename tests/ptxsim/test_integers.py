"""Integer arithmetic, bits and comparisons, against Python's integers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest

from .build import compiler
from .handwritten import Row, check_rows

pytestmark = pytest.mark.skipif(compiler() is None, reason="g++ is not on the PATH")

THREADS = 256
_COUNTS = (0, 1, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255)
_PREFIX = {2: "h", 4: "", 8: "d"}
_I16, _U16, _I32, _U32, _I64, _U64 = (
    np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64
)  # fmt: skip


def wrapped(values: list[int], dtype: type[np.integer]) -> npt.NDArray[np.integer]:
    bits = np.iinfo(dtype).bits
    return np.array([v % (1 << bits) for v in values], f"u{bits // 8}").view(dtype)


def operands(dtype: type[np.integer]) -> tuple[npt.NDArray[np.integer], ...]:
    """a, b, c [threads]: all pairs of extreme a and b, then any values."""
    info = np.iinfo(dtype)
    middle = info.max // 2 + 1
    edges = [info.min, info.min + 1, info.max, info.max - 1, 0, 1, 2, 3, 31, middle, middle - 1]
    a, b, c = np.random.default_rng(0).integers(info.min, info.max, (3, THREADS), dtype, True)
    pairs = np.array(list(product(edges, edges)), dtype)
    a[: len(pairs)], b[: len(pairs)] = pairs.T
    return a, b, c


def row(
    text: str,
    dtype: type[np.integer],
    function: Callable[..., int],
    result: type[np.integer] | None = None,
    counts: int = 0,
) -> Row:
    """`$x`, `$a`, ... are registers of the sizes of the types.

    function: of the inputs of one thread; the last `counts` of them are small and of 32 bits.
    """
    n = sum(f"${name}" in text for name in "abc")
    few = np.random.default_rng(1).choice(np.array(_COUNTS, np.uint32), (n, THREADS))
    values = operands(dtype)[:n]
    inputs = (*values[: n - counts], *few[n - counts :])
    for name, array in zip("abc", inputs, strict=False):
        text = text.replace(f"${name}", f"%{_PREFIX[array.itemsize]}{name}")
    result = result or dtype
    text = text.replace("$x", f"%{_PREFIX[np.dtype(result).itemsize]}x")
    expected = [function(*map(int, each)) for each in zip(*inputs, strict=True)]
    return Row(text, inputs, wrapped(expected, result))


def quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def clamped(x: int) -> int:
    return max(-(2**31), min(x, 2**31 - 1))


def bits_of(x: int, position: int, length: int, width: int) -> int:
    """bfe, bit by bit: what lies outside is the sign, given by x itself where it is negative."""
    kept = [x >> min(position + i, width - 1) & 1 for i in range(min(length, width))]
    if x >= 0 or not kept:
        kept = [bit if position + i < width else 0 for i, bit in enumerate(kept)]
    return sum(bit << i for i, bit in enumerate(kept))


def signed_bits_of(x: int, position: int, length: int, width: int) -> int:
    field = bits_of(x, position, length, width)
    sign = length > 0 and x >> min(position + length - 1, width - 1) & 1
    return field - (1 << min(length, width)) if sign else field


def with_bits(field: int, base: int, position: int, length: int, width: int) -> int:
    for i in range(min(length, max(width - position, 0))):
        base = base & ~(1 << position + i) | (field >> i & 1) << position + i
    return base


def bytes_of(a: int, b: int, selector: int) -> int:
    source = (b << 32 | a).to_bytes(8, "little")
    picks = [selector >> 4 * i & 15 for i in range(4)]
    picked = [source[p & 7] if p < 8 else 255 * (source[p & 7] >> 7) for p in picks]
    return int.from_bytes(bytes(picked), "little")


def logic(table: int) -> Callable[[int, int, int], int]:
    return lambda a, b, c: sum(
        (table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1) & 1) << i for i in range(32)
    )


def backwards(x: int, width: int) -> int:
    return int(format(x, f"0{width}b")[::-1], 2)


ARITHMETIC = [
    row("add.s16 $x, $a, $b;", _I16, lambda a, b: a + b),
    row("add.u32 $x, $a, $b;", _U32, lambda a, b: a + b),
    row("add.s64 $x, $a, $b;", _I64, lambda a, b: a + b),
    row("add.sat.s32 $x, $a, $b;", _I32, lambda a, b: clamped(a + b)),
    row("sub.s32 $x, $a, $b;", _I32, lambda a, b: a - b),
    row("sub.sat.s32 $x, $a, $b;", _I32, lambda a, b: clamped(a - b)),
    row("sub.u64 $x, $a, -7;", _U64, lambda a: a + 7),
    row("mul.lo.s16 $x, $a, $b;", _I16, lambda a, b: a * b),
    row("mul.lo.u16 $x, $a, $b;", _U16, lambda a, b: a * b),
    row("mul.lo.s32 $x, $a, $b;", _I32, lambda a, b: a * b),
    row("mul.lo.s64 $x, $a, $b;", _I64, lambda a, b: a * b),
    row("mul.hi.s16 $x, $a, $b;", _I16, lambda a, b: a * b >> 16),
    row("mul.hi.s32 $x, $a, $b;", _I32, lambda a, b: a * b >> 32),
    row("mul.hi.u32 $x, $a, $b;", _U32, lambda a, b: a * b >> 32),
    row("mul.hi.s64 $x, $a, $b;", _I64, lambda a, b: a * b >> 64),
    row("mul.hi.u64 $x, $a, $b;", _U64, lambda a, b: a * b >> 64),
    row("mul.wide.s16 $x, $a, $b;", _I16, lambda a, b: a * b, _I32),
    row("mul.wide.u16 $x, $a, $b;", _U16, lambda a, b: a * b, _U32),
    row("mul.wide.s32 $x, $a, $b;", _I32, lambda a, b: a * b, _I64),
    row("mul.wide.u32 $x, $a, $b;", _U32, lambda a, b: a * b, _U64),
    row("mad.lo.s32 $x, $a, $b, $c;", _I32, lambda a, b, c: a * b + c),
    row("mad.lo.u16 $x, $a, $b, $c;", _U16, lambda a, b, c: a * b + c),
    row("mad.hi.s32 $x, $a, $b, $c;", _I32, lambda a, b, c: (a * b >> 32) + c),
    row("mad.hi.u32 $x, $a, $b, $c;", _U32, lambda a, b, c: (a * b >> 32) + c),
    row("cvt.u64.u32 %d1, $c; mad.wide.u32 $x, $a, $b, %d1;", _U32,
        lambda a, b, c: a * b + c, _U64),
    row("cvt.s64.s32 %d1, $c; mad.wide.s32 $x, $a, $b, %d1;", _I32,
        lambda a, b, c: a * b + c, _I64),
    # A divisor is made odd, as 0 is an error here.
    row("or.b16 %h0, $b, 1; div.s16 $x, $a, %h0;", _I16, lambda a, b: quotient(a, b | 1)),
    row("or.b32 %r0, $b, 1; div.s32 $x, $a, %r0;", _I32, lambda a, b: quotient(a, b | 1)),
    row("or.b32 %r0, $b, 1; div.u32 $x, $a, %r0;", _U32, lambda a, b: quotient(a, b | 1)),
    row("or.b64 %d1, $b, 1; div.s64 $x, $a, %d1;", _I64, lambda a, b: quotient(a, b | 1)),
    row("or.b64 %d1, $b, 1; div.u64 $x, $a, %d1;", _U64, lambda a, b: quotient(a, b | 1)),
    row("or.b32 %r0, $b, 1; rem.s32 $x, $a, %r0;", _I32,
        lambda a, b: a - quotient(a, b | 1) * (b | 1)),
    row("or.b32 %r0, $b, 1; rem.u32 $x, $a, %r0;", _U32, lambda a, b: a % (b | 1)),
    row("or.b64 %d1, $b, 1; rem.u64 $x, $a, %d1;", _U64, lambda a, b: a % (b | 1)),
    row("max.s16 $x, $a, $b;", _I16, max),
    row("min.u32 $x, $a, $b;", _U32, min),
    row("max.u64 $x, $a, $b;", _U64, max),
    row("min.s64 $x, $a, $b;", _I64, min),
    row("neg.s32 $x, $a;", _I32, lambda a: -a),
    row("abs.s32 $x, $a;", _I32, lambda a: abs(a)),
    row("abs.s64 $x, $a;", _I64, lambda a: abs(a)),
]  # fmt: skip
BITS = [
    row("and.b32 $x, $a, $b;", _U32, lambda a, b: a & b),
    row("or.b16 $x, $a, $b;", _U16, lambda a, b: a | b),
    row("xor.b64 $x, $a, $b;", _U64, lambda a, b: a ^ b),
    row("not.b32 $x, $a;", _U32, lambda a: ~a),
    row("not.b16 $x, $a;", _U16, lambda a: ~a),
    row("shl.b16 $x, $a, $b;", _U16, lambda a, n: a << n, counts=1),
    row("shl.b32 $x, $a, $b;", _U32, lambda a, n: a << n, counts=1),
    row("shl.b64 $x, $a, $b;", _U64, lambda a, n: a << n, counts=1),
    row("shr.u16 $x, $a, $b;", _U16, lambda a, n: a >> n, counts=1),
    row("shr.s16 $x, $a, $b;", _I16, lambda a, n: a >> n, counts=1),
    row("shr.b32 $x, $a, $b;", _U32, lambda a, n: a >> n, counts=1),
    row("shr.s32 $x, $a, $b;", _I32, lambda a, n: a >> n, counts=1),
    row("shr.u64 $x, $a, $b;", _U64, lambda a, n: a >> n, counts=1),
    row("shr.s64 $x, $a, $b;", _I64, lambda a, n: a >> n, counts=1),
    row("shf.l.wrap.b32 $x, $a, $b, $c;", _U32,
        lambda a, b, n: (b << 32 | a) << n % 32 >> 32, counts=1),
    row("shf.l.clamp.b32 $x, $a, $b, $c;", _U32,
        lambda a, b, n: (b << 32 | a) << min(n, 32) >> 32, counts=1),
    row("shf.r.wrap.b32 $x, $a, $b, $c;", _U32,
        lambda a, b, n: (b << 32 | a) >> n % 32, counts=1),
    row("shf.r.clamp.b32 $x, $a, $b, $c;", _U32,
        lambda a, b, n: (b << 32 | a) >> min(n, 32), counts=1),
    *(row(f"lop3.b32 $x, $a, $b, $c, {table:#x};", _U32, logic(table))
      for table in (0x80, 0x96, 0xCA, 0xE8, 0x1B, 0x3D)),
    row("prmt.b32 $x, $a, $b, $c;", _U32, bytes_of),
    row("prmt.b32 $x, $a, $b, 0x5410;", _U32, lambda a, b: (b & 0xFFFF) << 16 | a & 0xFFFF),
    row("bfe.u32 $x, $a, $b, $c;", _U32, lambda a, p, n: bits_of(a, p, n, 32), counts=2),
    row("bfe.s32 $x, $a, $b, $c;", _I32, lambda a, p, n: signed_bits_of(a, p, n, 32), counts=2),
    row("bfe.u64 $x, $a, $b, $c;", _U64, lambda a, p, n: bits_of(a, p, n, 64), counts=2),
    row("bfe.s64 $x, $a, $b, $c;", _I64, lambda a, p, n: signed_bits_of(a, p, n, 64), counts=2),
    row("bfi.b32 $x, $a, $b, $c, 9;", _U32, lambda a, b, p: with_bits(a, b, p, 9, 32), counts=1),
    row("bfi.b32 $x, $a, $b, 3, $c;", _U32, lambda a, b, n: with_bits(a, b, 3, n, 32), counts=1),
    row("bfi.b64 $x, $a, $b, $c, 33;", _U64, lambda a, b, p: with_bits(a, b, p, 33, 64), counts=1),
    row("popc.b32 $x, $a;", _U32, lambda a: a.bit_count()),
    row("popc.b64 $x, $a;", _U64, lambda a: a.bit_count(), _U32),
    row("clz.b32 $x, $a;", _U32, lambda a: 32 - a.bit_length()),
    row("clz.b64 $x, $a;", _U64, lambda a: 64 - a.bit_length(), _U32),
    row("bfind.u32 $x, $a;", _U32, lambda a: a.bit_length() - 1),
    row("bfind.s32 $x, $a;", _I32, lambda a: (a if a >= 0 else ~a).bit_length() - 1),
    row("brev.b32 $x, $a;", _U32, lambda a: backwards(a, 32)),
    row("brev.b64 $x, $a;", _U64, lambda a: backwards(a, 64)),
]  # fmt: skip
_P0 = "selp.u32 $x, 1, 0, %p0;"
_BOTH = "selp.u32 %r0, 1, 0, %p0; selp.u32 %r1, 2, 0, %p1; or.b32 $x, %r0, %r1;"
COMPARISONS = [
    row(f"setp.eq.s32 %p0, $a, $b; {_P0}", _I32, lambda a, b: a == b),
    row(f"setp.ne.b64 %p0, $a, $b; {_P0}", _U64, lambda a, b: a != b, _U32),
    row(f"setp.lt.s16 %p0, $a, $b; {_P0}", _I16, lambda a, b: a < b, _U32),
    row(f"setp.lt.u16 %p0, $a, $b; {_P0}", _U16, lambda a, b: a < b, _U32),
    row(f"setp.le.s32 %p0, $a, $b; {_P0}", _I32, lambda a, b: a <= b),
    row(f"setp.gt.u32 %p0, $a, $b; {_P0}", _U32, lambda a, b: a > b),
    row(f"setp.ge.s64 %p0, $a, $b; {_P0}", _I64, lambda a, b: a >= b, _U32),
    row(f"setp.lo.u32 %p0, $a, $b; {_P0}", _U32, lambda a, b: a < b),
    row(f"setp.ls.u64 %p0, $a, $b; {_P0}", _U64, lambda a, b: a <= b, _U32),
    row(f"setp.hi.u32 %p0, $a, $b; {_P0}", _U32, lambda a, b: a > b),
    row(f"setp.hs.u32 %p0, $a, $b; {_P0}", _U32, lambda a, b: a >= b),
    row(f"setp.gt.s32 %p2, $c, 0; setp.lt.and.s32 %p0|%p1, $a, $b, %p2; {_BOTH}", _I32,
        lambda a, b, c: (a < b and c > 0) + 2 * (a >= b and c > 0)),
    row(f"setp.gt.s32 %p2, $c, 0; setp.lt.or.s32 %p0|%p1, $a, $b, !%p2; {_BOTH}", _I32,
        lambda a, b, c: (a < b or c <= 0) + 2 * (a >= b or c <= 0)),
    row(f"setp.gt.s32 %p2, $c, 0; setp.lt.xor.s32 %p0|%p1, $a, $b, %p2; {_BOTH}", _I32,
        lambda a, b, c: ((a < b) != (c > 0)) + 2 * ((a >= b) != (c > 0))),
    # The combined predicate is also a destination.
    row(f"setp.gt.s32 %p0, $c, 0; setp.lt.and.s32 %p0|%p1, $a, $b, %p0; {_BOTH}", _I32,
        lambda a, b, c: (a < b and c > 0) + 2 * (a >= b and c > 0)),
    row(f"setp.lt.s32 %p1, $a, $b; setp.lt.s32 %p2, $b, $c; and.pred %p3, %p1, %p2; "
        f"not.pred %p3, %p3; xor.pred %p0, %p3, %p2; or.pred %p0, %p0, %p1; {_P0}", _I32,
        lambda a, b, c: (not (a < b < c)) != (b < c) or a < b),
    row("setp.lt.s64 %p0, $a, $b; selp.b64 $x, $a, $b, %p0;", _I64, min),
    row("setp.lt.s16 %p0, $a, $b; selp.b16 $x, $a, 77, %p0;", _I16,
        lambda a, b: a if a < b else 77),
]  # fmt: skip


@pytest.mark.parametrize(
    "rows", [ARITHMETIC, BITS, COMPARISONS], ids=["arithmetic", "bits", "setp"]
)
def test_integers(rows: list[Row]) -> None:
    check_rows(rows)
