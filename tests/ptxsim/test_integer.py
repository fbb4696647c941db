"""Integer arithmetic, shifts, bits and predicates, against Python's integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from .build import compiler
from .elementwise import Array, Case, check, module

pytestmark = pytest.mark.skipif(compiler() is None, reason="g++ is not on the PATH")


def exactly(function: Callable[..., int], output: str) -> Callable[..., Array]:
    """`function` of Python's integers, modulo 2^bits."""
    dtype = np.dtype(output)
    mask = 2 ** (8 * dtype.itemsize) - 1

    def expected(*arrays: Array) -> Array:
        rows = zip(*(array.tolist() for array in arrays), strict=True)
        results = [function(*row) & mask for row in rows]
        return np.array(results, f"u{dtype.itemsize}").view(dtype)

    return expected


def case(body: str, inputs: str, output: str, function: Callable[..., int], **more: Array) -> Case:
    given = {"abc".index(name): array for name, array in more.items()}
    return Case(body, inputs, output, exactly(function, output), given=given)


def _clamp(x: int, dtype: str) -> int:
    info = np.iinfo(dtype)
    return max(int(info.min), min(int(info.max), x))


def _truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _signed(x: int, bits: int) -> int:
    x &= 2**bits - 1
    return x - 2**bits if x >> (bits - 1) else x


def _extracted(a: int, position: int, length: int, bits: int, signed: bool) -> int:
    position, length = position & 255, length & 255
    if length == 0:
        return 0
    field = a & (2**bits - 1)
    filled = field >> min(position + length - 1, bits - 1) & 1 if signed else 0
    out = 0
    for i in range(bits):
        inside = i < length and position + i < bits
        out |= (field >> (position + i) & 1 if inside else filled) << i
    return out


def _inserted(field: int, base: int, position: int, length: int, bits: int) -> int:
    position, length = position & 255, length & 255
    for i in range(length):
        if position + i < bits:
            bit = 1 << (position + i)
            base = base | bit if field >> i & 1 else base & ~bit
    return base


def _permuted(a: int, b: int, selector: int) -> int:
    source = (b & 0xFFFFFFFF) << 32 | (a & 0xFFFFFFFF)
    out = 0
    for i in range(4):
        pick = selector >> 4 * i & 15
        byte = source >> 8 * (pick & 7) & 255
        out |= (0xFF * (byte >> 7) if pick & 8 else byte) << 8 * i
    return out


def _table(a: int, b: int, c: int, table: int) -> int:
    bit = (table >> (4 * (a >> i & 1) + 2 * (b >> i & 1) + (c >> i & 1)) & 1 for i in range(32))
    return sum(x << i for i, x in enumerate(bit))


NONZERO = np.array([1, -1, 2, -7, 1000, 2**31 - 1, -(2**31)], np.int64)
SMALL = np.arange(0, 80)
LENGTHS = np.array([0, 1, 5, 8, 31, 32, 33, 64, 100, 255, 256])
CASES: dict[str, Case] = {}
for _t, _np in (("s16", "i2"), ("u16", "u2"), ("s32", "i4"), ("u32", "u4"), ("s64", "i8"), ("u64", "u8")):
    _bits = 8 * np.dtype(_np).itemsize
    _two, _three = f"{_np} {_np}", f"{_np} {_np} {_np}"
    CASES |= {
        f"add_{_t}": case(f"add.{_t} %d, %a, %b;", _two, _np, lambda a, b: a + b),
        f"sub_{_t}": case(f"sub.{_t} %d, %a, %b;", _two, _np, lambda a, b: a - b),
        f"mul_lo_{_t}": case(f"mul.lo.{_t} %d, %a, %b;", _two, _np, lambda a, b: a * b),
        f"mul_hi_{_t}": case(
            f"mul.hi.{_t} %d, %a, %b;", _two, _np, lambda a, b, n=_bits: a * b >> n
        ),
        f"mad_lo_{_t}": case(
            f"mad.lo.{_t} %d, %a, %b, %c;", _three, _np, lambda a, b, c: a * b + c
        ),
        f"div_{_t}": case(f"div.{_t} %d, %a, %b;", _two, _np, _truncated, b=NONZERO),
        f"rem_{_t}": case(
            f"rem.{_t} %d, %a, %b;", _two, _np, lambda a, b: a - b * _truncated(a, b), b=NONZERO
        ),
        f"min_{_t}": case(f"min.{_t} %d, %a, %b;", _two, _np, min),
        f"max_{_t}": case(f"max.{_t} %d, %a, %b;", _two, _np, max),
        f"shr_{_t}": case(
            f"shr.{_t} %d, %a, %b;", f"{_np} u4", _np, lambda a, b: a >> b, b=SMALL
        ),
    }  # fmt: skip
    if _t[0] == "s":
        CASES[f"abs_{_t}"] = case(f"abs.{_t} %d, %a;", _np, _np, abs)
        CASES[f"neg_{_t}"] = case(f"neg.{_t} %d, %a;", _np, _np, lambda a: -a)
    for _compare, _test in (
        ("eq", int.__eq__), ("ne", int.__ne__), ("lt", int.__lt__), ("le", int.__le__),
        ("gt", int.__gt__), ("ge", int.__ge__),
    ):  # fmt: skip
        CASES[f"setp_{_compare}_{_t}"] = case(
            f"setp.{_compare}.{_t} %p0, %a, %b; selp.u32 %d, 1, 0, %p0;", _two, "u4",
            lambda a, b, test=_test: int(test(a, b)),
        )  # fmt: skip
for _t, _np, _wide, _wide_np in (
    ("s16", "i2", "s32", "i4"), ("u16", "u2", "u32", "u4"),
    ("s32", "i4", "s64", "i8"), ("u32", "u4", "u64", "u8"),
):  # fmt: skip
    CASES[f"mul_wide_{_t}"] = case(
        f"mul.wide.{_t} %d, %a, %b;", f"{_np} {_np}", _wide_np, lambda a, b: a * b
    )
    CASES[f"mad_wide_{_t}"] = case(
        f"mad.wide.{_t} %d, %a, %b, %c;", f"{_np} {_np} {_wide_np}", _wide_np,
        lambda a, b, c: a * b + c,
    )  # fmt: skip
for _t, _np in (("b16", "u2"), ("b32", "u4"), ("b64", "u8")):
    CASES |= {
        f"and_{_t}": case(f"and.{_t} %d, %a, %b;", f"{_np} {_np}", _np, lambda a, b: a & b),
        f"or_{_t}": case(f"or.{_t} %d, %a, %b;", f"{_np} {_np}", _np, lambda a, b: a | b),
        f"xor_{_t}": case(f"xor.{_t} %d, %a, %b;", f"{_np} {_np}", _np, lambda a, b: a ^ b),
        f"not_{_t}": case(f"not.{_t} %d, %a;", _np, _np, lambda a: ~a),
        f"shl_{_t}": case(f"shl.{_t} %d, %a, %b;", f"{_np} u4", _np, lambda a, b: a << b, b=SMALL),
    }
for _t, _np in (("s32", "i4"), ("u32", "u4"), ("s64", "i8"), ("u64", "u8")):
    _bits, _sign = 8 * np.dtype(_np).itemsize, _t[0] == "s"
    CASES[f"bfe_{_t}"] = case(
        f"bfe.{_t} %d, %a, %b, %c;", f"{_np} u4 u4", _np,
        lambda a, b, c, n=_bits, s=_sign: _extracted(a, b, c, n, s), b=SMALL, c=LENGTHS,
    )  # fmt: skip
    CASES[f"bfind_{_t}"] = case(
        f"bfind.{_t} %d, %a;", _np, "u4",
        lambda a: (~a if a < 0 else a).bit_length() - 1,
    )  # fmt: skip
for _bits, _np in ((32, "u4"), (64, "u8")):
    CASES |= {
        f"bfi_b{_bits}": case(
            f"mov.u32 %r3, 5; bfi.b{_bits} %d, %a, %b, %c, %r3;", f"{_np} {_np} u4", _np,
            lambda a, b, c, n=_bits: _inserted(a, b, c, 5, n), c=SMALL,
        ),
        f"bfi_lengths_b{_bits}": case(
            f"bfi.b{_bits} %d, %a, %b, 3, %c;", f"{_np} {_np} u4", _np,
            lambda a, b, c, n=_bits: _inserted(a, b, 3, c, n), c=LENGTHS,
        ),
        f"popc_b{_bits}": case(f"popc.b{_bits} %d, %a;", _np, "u4", int.bit_count),
        f"clz_b{_bits}": case(
            f"clz.b{_bits} %d, %a;", _np, "u4", lambda a, n=_bits: n - a.bit_length()
        ),
        f"brev_b{_bits}": case(
            f"brev.b{_bits} %d, %a;", _np, _np, lambda a, n=_bits: int(f"{a:0{n}b}"[::-1], 2)
        ),
    }  # fmt: skip
_U3 = "u4 u4 u4"
CASES |= {
    "add_sat": case(
        "add.sat.s32 %d, %a, %b;", "i4 i4", "i4", lambda a, b: _clamp(a + b, "i4")
    ),
    "sub_sat": case(
        "sub.sat.s32 %d, %a, %b;", "i4 i4", "i4", lambda a, b: _clamp(a - b, "i4")
    ),
    "shf_l_wrap": case(
        "shf.l.wrap.b32 %d, %a, %b, %c;", _U3, "u4",
        lambda a, b, c: (b << 32 | a) << (c & 31) >> 32, c=SMALL,
    ),
    "shf_l_clamp": case(
        "shf.l.clamp.b32 %d, %a, %b, %c;", _U3, "u4",
        lambda a, b, c: (b << 32 | a) << min(c, 32) >> 32, c=SMALL,
    ),
    "shf_r_wrap": case(
        "shf.r.wrap.b32 %d, %a, %b, %c;", _U3, "u4", lambda a, b, c: (b << 32 | a) >> (c & 31),
        c=SMALL,
    ),
    "shf_r_clamp": case(
        "shf.r.clamp.b32 %d, %a, %b, %c;", _U3, "u4", lambda a, b, c: (b << 32 | a) >> min(c, 32),
        c=SMALL,
    ),
    "prmt": case("prmt.b32 %d, %a, %b, %c;", _U3, "u4", _permuted),
    "prmt_constant": case(
        "prmt.b32 %d, %a, %b, 0x7610;", "u4 u4", "u4", lambda a, b: _permuted(a, b, 0x7610)
    ),
    **{
        f"lop3_{table:02x}": case(
            f"lop3.b32 %d, %a, %b, %c, {table};", _U3, "u4",
            lambda a, b, c, t=table: _table(a, b, c, t),
        )
        for table in (0x00, 0x1B, 0x80, 0x96, 0xCA, 0xE8, 0xFF)
    },
    "setp_unsigned_names": case(
        "setp.lo.u32 %p0, %a, %b; setp.ls.u32 %p1, %a, %b; selp.u32 %r3, 1, 0, %p0; "
        "selp.u32 %d, 2, 0, %p1; add.u32 %d, %d, %r3;", "u4 u4", "u4",
        lambda a, b: (a < b) + 2 * (a <= b),
    ),
    "setp_pair": case(
        "setp.lt.s32 %p0|%p1, %a, %b; selp.u32 %r3, 1, 0, %p0; selp.u32 %d, 2, 0, %p1; "
        "add.u32 %d, %d, %r3;", "i4 i4", "u4", lambda a, b: 1 if a < b else 2,
    ),
    "setp_and": case(
        "setp.gt.s32 %p0, %c, 0; setp.lt.and.s32 %p1, %a, %b, %p0; selp.u32 %d, 1, 0, %p1;",
        "i4 i4 i4", "u4", lambda a, b, c: a < b and c > 0,
    ),
    "setp_or_not": case(
        "setp.gt.s32 %p0, %c, 0; setp.lt.or.s32 %p1, %a, %b, !%p0; selp.u32 %d, 1, 0, %p1;",
        "i4 i4 i4", "u4", lambda a, b, c: a < b or c <= 0,
    ),
    "setp_xor": case(
        "setp.gt.s32 %p0, %c, 0; setp.lt.xor.s32 %p1, %a, %b, %p0; selp.u32 %d, 1, 0, %p1;",
        "i4 i4 i4", "u4", lambda a, b, c: (a < b) != (c > 0),
    ),
    "predicates": case(
        "setp.gt.s32 %p0, %a, 0; setp.gt.s32 %p1, %b, 0; and.pred %p2, %p0, %p1; "
        "xor.pred %p3, %p0, %p1; not.pred %p1, %p2; or.pred %p2, %p3, %p2; mov.pred %p0, %p2; "
        "mov.u32 %d, 0; @%p0 add.u32 %d, %d, 1; @!%p1 add.u32 %d, %d, 2;", "i4 i4", "u4",
        lambda a, b: (a > 0 or b > 0) + 2 * (a > 0 and b > 0),
    ),
    "selp_b64": case(
        "setp.ne.u32 %p0, %c, 0; selp.b64 %d, %a, %b, %p0;", "u8 u8 u4", "u8",
        lambda a, b, c: a if c else b,
    ),
    "branches": case(
        "setp.lt.s32 %p0, %a, 0; mov.u32 %d, 0; @%p0 bra SKIPPED; mov.u32 %d, 1; bra.uni JOINED; "
        "SKIPPED: add.u32 %d, %d, 7; JOINED:", "i4", "u4", lambda a: 7 if a < 0 else 1,
    ),
    "loop": case(
        "and.b32 %r3, %a, 15; mov.u32 %d, 0; AGAIN: setp.eq.u32 %p0, %r3, 0; @%p0 bra DONE; "
        "add.u32 %d, %d, %r3; sub.u32 %r3, %r3, 1; bra AGAIN; DONE:", "u4", "u4",
        lambda a: (a & 15) * ((a & 15) + 1) // 2,
    ),
    "scopes": case(
        "{ .reg .b32 %t; mov.u32 %t, %a; { .reg .b32 %t; mov.u32 %t, 1; add.u32 %d, %t, 1; } "
        "add.u32 %d, %d, %t; }", "u4", "u4", lambda a: a + 2,
    ),
    "mov_unpack": case(
        "{ .reg .b16 lo, hi; mov.b32 {lo, hi}, %a; mov.b32 %d, {hi, lo}; }", "u4", "u4",
        lambda a: a << 16 | a >> 16,
    ),
    "mov_bytes": case(
        "{ .reg .b8 t<4>; mov.b32 {t0, t1, t2, t3}, %a; mov.b32 %d, {t3, t2, t1, t0}; }", "u4",
        "u4", lambda a: int.from_bytes(a.to_bytes(4, "little"), "big"),
    ),
    "mov_b64": case(
        "mov.b64 {%r3, %r4}, %a; mov.b64 %d, {%r4, %r3};", "u8", "u8",
        lambda a: a << 32 | a >> 32,
    ),
    "immediates": case(
        "add.u32 %d, %a, -1; add.u32 %d, %d, 0x10; add.u32 %d, %d, 3U; xor.b32 %d, %d, 010;",
        "u4", "u4", lambda a: (a + 18) ^ 8,
    ),
}  # fmt: skip
PTX = module(CASES)


@pytest.mark.parametrize("name", list(CASES))
def test_integer(name: str) -> None:
    check(PTX, name, CASES[name])
