"""ldmatrix, stmatrix and mma.sync, against NumPy's products and transposes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from .build import compiler
from .handwritten import kernel, module
from .kernel import Kernel, Options
from .rounding import decode, nearest

pytestmark = pytest.mark.skipif(compiler() is None, reason="g++ is not on the PATH")

Array = npt.NDArray[np.generic]
_LANE = np.arange(32)
_GROUP, _MEMBER = _LANE // 4, _LANE % 4


def _registers(count: int, first: int = 0) -> str:
    return ", ".join(f"%r{first + i}" for i in range(count))


def _moves(count: int, first: int, base: str, op: str) -> str:
    """Registers from or to rows of 32 words, one for each lane."""
    text = {"ld": "ld.global.b32 %r{0}, [{1}];", "st": "st.global.b32 [{1}], %r{0};"}[op]
    return "\n".join(text.format(first + i, f"%{base}+{128 * i}") for i in range(count)) + "\n"


# x: words of registers, [register, lane]; y: the same.
_OWN = "mul.wide.u32 %d0, %lane, 4;\nadd.u64 %x, %x, %d0;\nadd.u64 %y, %y, %d0;\n"


def _mma(opcode: str, n_a: int, n_b: int) -> str:
    d, a, b, c = (
        _registers(n, first) for n, first in ((4, 20), (n_a, 0), (n_b, n_a), (4, n_a + n_b))
    )
    product = f"{opcode} {{{d}}}, {{{a}}}, {{{b}}}, {{{c}}};\n"
    return _OWN + _moves(n_a + n_b + 4, 0, "x", "ld") + product + _moves(4, 20, "y", "st")


# m16n8k<k>: opcode, bits of an element, k.
MMA = {
    "bf16_k16": ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", 16, 16),
    "bf16_k8": ("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32", 16, 8),
    "f16_k16": ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", 16, 16),
    "tf32_k8": ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", 32, 8),
    "tf32_k4": ("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32", 32, 4),
    "s8_k32": ("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", 8, 32),
    "s8_k32_satfinite": ("mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32", 8, 32),
    "s8_k16": ("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32", 8, 16),
    "u8_k32": ("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32", 8, 32),
}


def to_registers(matrix: Array) -> Array:
    """The rows [8 i + lane / 4], and along them the words of each lane: [register, lane]."""
    words = np.ascontiguousarray(matrix).view(np.uint32)  # [rows, words]
    blocks = words.reshape(-1, 8, words.shape[1] // 4, 4)  # [i, group, j, member]
    return blocks.transpose(2, 0, 1, 3).reshape(-1, 32)


def elements(kind: str, rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Array, Array]:
    """A matrix as it is stored, and its values."""
    if kind in ("s8", "u8"):
        stored = rng.integers(0, 256, shape, np.uint8)
        return stored, (stored.view(np.int8) if kind == "s8" else stored).astype(np.int64)
    stored = nearest(rng.standard_normal(shape), kind)
    if kind == "tf32":
        # A tensor core does not see the last 13 bits.
        return stored << 13 | rng.integers(0, 2**13, shape, np.uint32), decode(stored, kind)
    return stored.astype(np.uint16), decode(stored, kind)


# Rows of 16 bytes in shared memory, first written by the lanes; matrix i has the rows 8 i.
_TILE = "mov.u32 %r20, tile;\nmad.lo.u32 %r21, %lane, 16, %r20;\n"
_FILL = "".join(f"st.shared.b32 [%r21+{4 * i}], %r{i};\n" for i in range(4))
_DRAIN = "".join(f"ld.shared.b32 %r{i}, [%r21+{4 * i}];\n" for i in range(4))
MATRICES = {
    f"{op}_{count}{'_trans' * trans}": (op, count, trans)
    for op in ("ldmatrix", "stmatrix")
    for count in (1, 2, 4)
    for trans in (False, True)
}


def _matrices(op: str, count: int, trans: bool) -> str:
    opcode = f"{op}.sync.aligned.m8n8.x{count}{'.trans' * trans}.shared.b16"
    if op == "ldmatrix":
        body = f"{_FILL}bar.warp.sync -1;\n{opcode} {{{_registers(count, 4)}}}, [%r21];\n"
        return _OWN + _TILE + _moves(4, 0, "x", "ld") + body + _moves(count, 4, "y", "st")
    body = f"{opcode} [%r21], {{{_registers(count)}}};\nbar.warp.sync -1;\n{_DRAIN}"
    clear = "st.shared.v4.b32 [%r21], {0, 0, 0, 0};\nbar.warp.sync -1;\n"
    return _OWN + _TILE + _moves(4, 0, "x", "ld") + clear + body + _moves(4, 0, "y", "st")


_PTX = module(
    *(
        kernel(name, ("x", "y"), _mma(opcode, k * bits // 64, k * bits // 128))
        for name, (opcode, bits, k) in MMA.items()
    ),
    *(kernel(name, ("x", "y"), _matrices(*form)) for name, form in MATRICES.items()),
    declarations=".shared .align 16 .b8 tile[512];",
)


@pytest.mark.parametrize("name", list(MMA))
def test_mma(name: str) -> None:
    rng = np.random.default_rng(0)
    kind, k = name.split("_")[0], MMA[name][2]
    a_stored, a = elements(kind, rng, (16, k))
    b_stored, b = elements(kind, rng, (8, k))  # its columns
    integral = kind in ("s8", "u8")
    c = rng.standard_normal((16, 8)).astype(np.float32)
    if integral:
        c = rng.integers(-(2**31), 2**31, (16, 8), np.int32)
        c[::2] = np.where(c[::2] > 0, 2**31 - 99, 99 - 2**31)  # some sums overflow
    c_lanes = c.reshape(2, 8, 4, 2).transpose(0, 3, 1, 2).reshape(4, 32)
    x = np.concatenate([to_registers(a_stored), to_registers(b_stored), c_lanes.view(np.uint32)])
    y = np.zeros((4, 32), np.uint32)
    Kernel(_PTX, name)((1,), (32,), x, y)
    d = y.view(c.dtype).reshape(2, 2, 8, 4).transpose(0, 2, 3, 1).reshape(16, 8)
    expected = a @ b.T + c
    if not integral:
        np.testing.assert_allclose(d, expected, rtol=1e-5, atol=1e-5)
        return
    assert np.any(expected != expected.astype(np.int32))
    if "satfinite" in name:
        expected = expected.clip(-(2**31), 2**31 - 1)
    np.testing.assert_array_equal(d, expected.astype(np.int32))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", list(MATRICES))
def test_matrices(name: str, seed: int) -> None:
    """A matrix in registers: lane l has the elements 2 (l % 4) and the next of its row l / 4."""
    op, count, trans = MATRICES[name]
    matrices = np.random.default_rng(0).integers(0, 2**16, (4, 8, 8), np.uint16)

    def turned(m: Array) -> Array:
        return np.ascontiguousarray(m.transpose(0, 2, 1) if trans else m)

    in_registers = turned(matrices).view(np.uint32).reshape(4, 32)  # [matrix, lane]
    in_rows = matrices.view(np.uint32).reshape(32, 4).T  # word i of each row: [i, row]
    x, y = np.zeros((4, 32), np.uint32), np.zeros((4, 32), np.uint32)
    if op == "ldmatrix":
        x[:] = in_rows
        expected = np.where(np.arange(4)[:, None] < count, in_registers, 0)
    else:
        x[:] = in_registers
        expected = np.where(np.arange(32) < 8 * count, in_rows, 0)
    Kernel(_PTX, name)((1,), (32,), x, y, options=Options(seed=seed))
    np.testing.assert_array_equal(y, expected)
