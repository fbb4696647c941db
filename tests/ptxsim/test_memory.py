"""Loads, stores, atomics, local arrays, generic addresses and cp.async, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from .build import compiler
from .errors import SimulatorError
from .handwritten import Row, check_rows, kernel, module
from .kernel import Kernel, Options

pytestmark = pytest.mark.skipif(compiler() is None, reason="g++ is not on the PATH")

THREADS = 64
_THREAD = np.arange(THREADS)
_RNG = np.random.default_rng(0)
_A = _RNG.integers(0, 2**32, THREADS, np.uint32)
_D = _RNG.integers(0, 2**63, THREADS, np.uint64) * 2
_BYTES = _D.view(np.uint8).reshape(THREADS, 8)
_DECLARATIONS = (
    ".shared .align 16 .b8 tile[1024];\n.global .align 8 .b32 counters[4] = {5, 6, 7, 8};\n"
    ".const .align 4 .b32 table[4] = {11, 22, 33, 44};\n"
)
# %r1: 16 bytes of shared memory for each thread; %d3: their generic address.
_OWN = "mov.u32 %r1, tile; mad.lo.u32 %r1, %thread, 16, %r1; cvt.u64.u32 %d3, %r1; "
_OWN += "cvta.shared.u64 %d3, %d3;"
_ARRAY = ".local .align 16 .b8 array[16];"


LOADS = [
    Row(f"{_OWN} st.shared.b64 [%r1], %da; ld.shared.s8 %x, [%r1+5];", (_D,),
        _BYTES[:, 5].view(np.int8).astype(np.int32)),
    Row(f"{_OWN} st.shared.b64 [%r1], %da; ld.shared.u8 %x, [%r1+7];", (_D,),
        _BYTES[:, 7].astype(np.uint32)),
    Row(f"{_OWN} st.shared.b64 [%r1], %da; ld.shared.s16 %dx, [%r1+2];", (_D,),
        _D.view(np.int16)[1::4].astype(np.int64)),
    Row(f"{_OWN} st.shared.v2.b32 [%r1], {{%a, %b}}; ld.shared.b64 %dx, [%r1];", (_A, _A[::-1]),
        _A[::-1].astype(np.uint64) << 32 | _A),
    Row(f"{_OWN} st.shared.v4.b32 [%r1], {{%a, %thread, %a, 9}}; "
        "ld.shared.v4.u32 {%r2, %r3, %r4, %r5}, [%r1]; sub.u32 %x, %r2, %r4; "
        "mad.lo.u32 %x, %r3, %r5, %x;", (_A,), (9 * _THREAD).astype(np.uint32)),
    Row(f"{_OWN} st.shared.b64 [%r1], %da; ld.shared.v4.s16 {{%r2, %r3, %r4, %r5}}, [%r1]; "
        "add.s32 %x, %r2, %r3; add.s32 %x, %x, %r4; add.s32 %x, %x, %r5;", (_D,),
        _D.view(np.int16).reshape(THREADS, 4).sum(1, dtype=np.int32)),
    Row(f"{_OWN} st.shared.v2.b64 [%r1], {{%da, -1}}; ld.shared.v2.b64 {{%d1, %d2}}, [%r1]; "
        "add.u64 %dx, %d1, %d2;", (_D,), _D - np.uint64(1)),
    # ---- generic addresses, of shared, local and global memory
    Row(f"{_OWN} st.b32 [%d3], %a; ld.shared.b32 %x, [%r1];", (_A,), _A),
    Row(f"{_OWN} st.shared.b32 [%r1], %a; ld.b32 %x, [%d3];", (_A,), _A),
    Row(f"{_OWN} cvta.to.shared.u64 %d4, %d3; cvt.u32.u64 %r2, %d4; st.shared.b32 [%r2+4], %a; "
        "ld.volatile.b32 %x, [%d3+4];", (_A,), _A),
    Row(f"{_OWN} isspacep.shared %p0, %d3; isspacep.shared %p1, %inputs; "
        "isspacep.global %p2, %inputs; selp.u32 %x, 1, 0, %p0; @%p1 add.u32 %x, %x, 2; "
        "@%p2 add.u32 %x, %x, 4;", (), np.full(THREADS, 5, np.uint32)),
    Row("ld.b64 %dx, [%inputs];", (), _D),  # the input of the first row
    Row(f"{_ARRAY} mov.u64 %d4, array; cvta.local.u64 %d5, %d4; st.local.b32 [array+4], %a; "
        "st.local.b32 [%d4], %thread; ld.b32 %r2, [%d5+4]; ld.local.b32 %r3, [array]; "
        "sub.u32 %x, %r2, %r3;", (_A,), (_A - _THREAD).astype(np.uint32)),
    Row("mov.u64 %d4, table; and.b32 %r2, %thread, 3; mul.wide.u32 %d5, %r2, 4; "
        "add.u64 %d4, %d4, %d5; ld.const.b32 %x, [%d4]; ld.const.b32 %r3, [table+12]; "
        "add.u32 %x, %x, %r3;", (), (44 + 11 * (1 + _THREAD % 4)).astype(np.uint32)),
    # ---- words and their parts
    Row("mov.b32 {%h0, %h1}, %a; mov.b32 %x, {%h1, %h0};", (_A,), _A << 16 | _A >> 16),
    Row("mov.b64 {%r2, %r3}, %da; mov.b64 %dx, {%r3, %r2};", (_D,), _D << 32 | _D >> 32),
    Row("mov.b64 {_, %x}, %da;", (_D,), (_D >> 32).astype(np.uint32)),
    Row("mov.f32 %x, 0fC0200000;", (), np.full(THREADS, -2.5, np.float32)),
    Row("mov.f64 %dx, 0dBFF8000000000000;", (), np.full(THREADS, -1.5)),
]  # fmt: skip


def atomic(
    operation: str, values: np.ndarray, initial: int | float, expected: int | float
) -> list[Row]:
    """The operation by all threads on one place in each space, and by its generic address."""
    dtype = values.dtype
    wide = "d" if dtype.itemsize == 8 else ""
    start = int(np.array([initial], dtype).view(f"u{dtype.itemsize}")[0])
    places = {".shared": ("tile", ".shared"), ".global": ("counters", ".global"), "": ("%d4", "")}
    return [
        Row(
            "mov.u64 %d4, tile; cvta.shared.u64 %d4, %d4; setp.eq.u32 %p0, %thread, 0; "
            f"@%p0 st{space}.b{8 * dtype.itemsize} [{place}], {start}; bar.sync 0; "
            f"red{space}.{operation} [{place}], %{wide}a; bar.sync 0; "
            f"ld{space}.b{8 * dtype.itemsize} %{wide}x, [{place}]; bar.sync 0;",
            (values,),
            np.full(THREADS, expected, dtype),
        )
        for place, space in places.values()
    ]


_I, _U, _F = _A.view(np.int32), _A, (_THREAD - 20).astype(np.float32)
_PAIRS = (_F.astype(np.float16).view(np.uint16).astype(np.uint32) << 16) | 0x3C00  # (1, F)
_SUM = np.array([THREADS + 2, _F.sum()], np.float16).view(np.uint32)[0]
ATOMICS = [
    *atomic("add.u32", _U, 7, (7 + int(_U.sum(dtype=np.int64))) % 2**32),
    *atomic("add.u64", _D, 1, (1 + sum(map(int, _D))) % 2**64),
    *atomic("add.f32", _F, 0.5, 0.5 + _F.sum()),
    *atomic("add.f64", _F.astype(np.float64), 0.25, 0.25 + _F.sum()),
    *atomic("add.noftz.f16x2", _PAIRS, 0x4000, _SUM),
    *atomic("min.s32", _I, 2**31 - 1, _I.min()),
    *atomic("max.s32", _I, -(2**31), _I.max()),
    *atomic("min.u32", _U, 2**32 - 1, _U.min()),
    *atomic("max.u32", _U, 0, _U.max()),
    *atomic("max.s64", _D.view(np.int64), -(2**63), _D.view(np.int64).max()),
    *atomic("and.b32", _U | 0xFF, 2**32 - 1, np.bitwise_and.reduce(_U | 0xFF)),
    *atomic("or.b32", _U & 0xF0F, 0, np.bitwise_or.reduce(_U & 0xF0F)),
    *atomic("xor.b32", _U, 3, 3 ^ np.bitwise_xor.reduce(_U)),
    *atomic("inc.u32", np.full(THREADS, 9, np.uint32), 0, THREADS % 10),
    *atomic("dec.u32", np.full(THREADS, 9, np.uint32), 5, (5 - THREADS) % 10),
]


@pytest.mark.parametrize("rows", [LOADS, ATOMICS], ids=["loads", "atomics"])
def test_memory(rows: list[Row]) -> None:
    check_rows(rows, _DECLARATIONS)


# x: 16 bytes for each thread.
_OWN_X = "mul.wide.u32 %d0, %thread, 16; add.u64 %x, %x, %d0;\n"
_VECTORS = f"""{_OWN_X}
    add.u64 %y, %y, %d0;
    createpolicy.fractional.L2::evict_first.b64 %d9, 1.0;
    ld.global.nc.L1::no_allocate.L2::cache_hint.v4.b32 {{%r0, %r1, %r2, %r3}}, [%x], %d9;
    ld.global.v4.f32 {{%r4, _, %r5, %r6}}, [%x];
    ld.relaxed.gpu.global.v2.b64 {{%d1, %d2}}, [%x];
    st.global.v4.b32 [%y], {{%r3, %r2, %r1, %r0}};
    st.global.L1::evict_last.v2.b64 [%y+1024], {{%d2, %d1}};
    mov.b32 {{%h0, %h1}}, %r4;
    mov.b32 {{%h2, %h3}}, %r6;
    st.global.v4.b16 [%y+2048], {{%h3, %h2, %h1, %h0}};
    st.wt.global.b8 [%y+2056], %r5;
"""
# What each atomic of a chain returned, and what it left.
_CHAINS = """
    mul.wide.u32 %d0, %thread, 4;
    add.u64 %d1, %y, %d0;
    atom.global.add.u32 %r0, [%x], 3;
    st.global.b32 [%d1], %r0;
    add.u32 %r1, %thread, 100;
    atom.global.exch.b32 %r0, [%x+4], %r1;
    st.global.b32 [%d1+256], %r0;
    atom.global.cas.b32 %r0, [%x+8], 42, %r1;
    st.global.b32 [%d1+512], %r0;
    mov.b32 %r2, 0;
AGAIN:
    add.u32 %r3, %r2, 5;
    atom.global.cas.b32 %r4, [%x+12], %r2, %r3;
    setp.ne.u32 %p0, %r4, %r2;
    mov.b32 %r2, %r4;
    @%p0 bra AGAIN;
"""
# Slots of 16 bytes, 1024 bytes apart; what the copies leave alone is ones.
_COPIES = f"""{_OWN_X}
    add.u64 %y, %y, %d0;
    mov.u32 %r1, tile;
    mad.lo.u32 %r1, %thread, 16, %r1;
    and.b32 %r2, %thread, 1;
    setp.eq.u32 %p0, %r2, 1;
    mul.lo.u32 %r3, %r2, 6;
    st.shared.v4.b32 [%r1], {{-1, -1, -1, -1}};
    st.shared.v4.b32 [%r1+1024], {{-1, -1, -1, -1}};
    cp.async.ca.shared.global [%r1], [%x], 4;
    cp.async.ca.shared.global.L2::128B [%r1+1024], [%x], 8;
    cp.async.commit_group;
    cp.async.cg.shared.global [%r1+2048], [%x], 16;
    cp.async.cg.shared.global [%r1+3072], [%x], 16, %r3;
    cp.async.ca.shared.global [%r1+4096], [%x], 16, %p0;
    cp.async.commit_group;
    cp.async.wait_group 1;
    ld.shared.v2.b64 {{%d1, %d2}}, [%r1];
    ld.shared.v2.b64 {{%d3, %d4}}, [%r1+1024];
    st.global.v2.b64 [%y], {{%d1, %d2}};
    st.global.v2.b64 [%y+1024], {{%d3, %d4}};
    cp.async.wait_all;
""" + "".join(
    f"    ld.shared.v2.b64 {{%d1, %d2}}, [%r1+{1024 * i}];\n"
    f"    st.global.v2.b64 [%y+{1024 * i}], {{%d1, %d2}};\n" for i in (2, 3, 4)
)  # fmt: skip
# A struct with padding between smaller parameters.
_PARAMETERS = """
.visible .entry parameters(.param .u64 y, .param .u8 small, .param .f32 single,
                           .param .align 8 .b8 struct[24], .param .u16 short, .param .f64 double) {
    .reg .b16 %h<4>; .reg .b32 %r<8>; .reg .b64 %y, %d<8>;
    ld.param.u64 %y, [y];
    ld.param.u8 %r0, [small];
    ld.param.f32 %r1, [single];
    ld.param.v2.b32 {%r2, %r3}, [struct+8];
    ld.param.s8 %r4, [struct+23];
    ld.param.u16 %h0, [short];
    ld.param.f64 %d0, [double];
    cvt.u32.u16 %r5, %h0;
    mov.b64 %d1, struct;  // by address, as of a parameter that is indexed
    add.s64 %d1, %d1, 8;
    ld.param.b32 %r3, [%d1+4];
    st.global.v4.b32 [%y], {%r0, %r1, %r2, %r3};
    st.global.v2.b32 [%y+16], {%r4, %r5};
    st.global.f64 [%y+24], %d0;
    ret;
}
"""
_KERNELS = module(
    *(kernel(name, ("x", "y"), body) for name, body in (
        ("vectors", _VECTORS), ("chains", _CHAINS), ("copies", _COPIES))),
    _PARAMETERS,
    declarations=".shared .align 16 .b8 tile[5120];",
)  # fmt: skip


def test_vectors() -> None:
    x = np.arange(4 * THREADS, dtype=np.uint32).reshape(THREADS, 4) * 0x01020305
    y = np.zeros((3, THREADS, 4), np.uint32)
    Kernel(_KERNELS, "vectors")((1,), (THREADS,), x, y)
    np.testing.assert_array_equal(y[0], x[:, ::-1])
    np.testing.assert_array_equal(y[1], x[:, [2, 3, 0, 1]])
    halves = y[2].view(np.uint16)
    np.testing.assert_array_equal(halves[:, :4], x.view(np.uint16)[:, [7, 6, 1, 0]])
    np.testing.assert_array_equal(halves[:, 4], x[:, 2] & 0xFF)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_atomics_return(seed: int) -> None:
    x, y = np.array([10, 99, 42, 0], np.uint32), np.zeros((3, THREADS), np.uint32)
    Kernel(_KERNELS, "chains")((1,), (THREADS,), x, y, options=Options(seed=seed))
    added, exchanged, compared = y
    assert sorted(added) == [10 + 3 * i for i in range(THREADS)]
    assert sorted([*exchanged, x[1]]) == [99, *range(100, 100 + THREADS)]
    winners = _THREAD[compared == 42]
    assert winners.tolist() == [x[2] - 100]
    assert set(compared) == {42, x[2]}
    assert x[0] == 10 + 3 * THREADS
    assert x[3] == 5 * THREADS


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_copies(seed: int) -> None:
    x = _RNG.integers(0, 255, (THREADS, 16), np.uint8)
    y = np.zeros((5, THREADS, 16), np.uint8)
    Kernel(_KERNELS, "copies")((1,), (THREADS,), x, y, options=Options(seed=seed))
    expected = np.full_like(y, 255)
    expected[0, :, :4], expected[1, :, :8], expected[2:] = x[:, :4], x[:, :8], x
    expected[3, 0::2], expected[3, 1::2, 6:] = 0, 0  # no bytes, six bytes
    expected[4, 1::2] = 0  # a source to ignore
    np.testing.assert_array_equal(y, expected)


def test_address_outside_the_parameters() -> None:
    outside = _KERNELS.replace("[%d1+4]", "[%d1+44]")
    with pytest.raises(SimulatorError, match="read of 4 bytes outside the parameters"):
        Kernel(outside, "parameters")((1,), (1,), np.zeros(8, np.uint32), 1, 1.0, 1, 1, 1.0)


def test_parameters() -> None:
    y = np.zeros(8, np.uint32)
    struct = np.arange(24, dtype=np.uint8) + 0x70
    value = int.from_bytes(struct.tobytes(), "little")
    Kernel(_KERNELS, "parameters")((1,), (1,), y, 200, -2.5, value, 65000, 1e100)
    words = struct.view(np.uint32)
    assert y[[0, 2, 3, 5]].tolist() == [200, words[2], words[3], 65000]
    assert y[4].view(np.int32) == struct.view(np.int8)[23]
    assert y[1].view(np.float32) == -2.5
    assert y[6:].view(np.float64)[0] == 1e100
