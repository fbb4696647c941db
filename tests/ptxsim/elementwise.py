"""One kernel for each instruction that works element by element, all in one PTX module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .kernel import Kernel

Array = npt.NDArray[np.generic]
THREADS = 256
N = 1024

HEADER = ".version 8.4\n.target sm_90\n.address_size 64\n"
_KERNEL = """
.visible .entry {name}(.param .u64 out, .param .u64 a, .param .u64 b, .param .u64 c) {{
    .reg .pred %p<4>;
    .reg .b16 %h<8>;
    .reg .b32 %i, %r<8>;
    .reg .b64 %address, %offset, %l<8>;
    .reg .b{bits_a} %a;
    .reg .b{bits_b} %b;
    .reg .b{bits_c} %c;
    .reg .b{bits_d} %d;
    mov.u32 %r0, %ctaid.x;
    mov.u32 %r1, %ntid.x;
    mov.u32 %r2, %tid.x;
    mad.lo.u32 %i, %r0, %r1, %r2;
{loads}
    {body}
    ld.param.u64 %address, [out];
    mad.wide.u32 %offset, %i, {bytes_d}, %address;
    st.global.b{width_d} [%offset], %d;
    ret;
}}
"""
_LOAD = """
    ld.param.u64 %address, [{name}];
    mad.wide.u32 %offset, %i, {bytes}, %address;
    ld.global.{kind}{width} %{name}, [%offset];"""

_INTEGERS = (0, 1, 2, 3, 7, 8, 15, 31, 32, 33, 63, 64, 127, 128, 255, 256, 0x12345678, 0x89ABCDEF)
_FLOATS = (
    0.0, 1.0, 0.5, 1.5, 2.5, 3.0, 0.1, 1e-3, 100.25, 65504.0, 65520.0, 1e9, 3e9, 1e20, 3e38, 1e-38,
    1.1754944e-38, 1e-40, 1e-45, 6e-8, 3e-8, 6.1e-5, np.inf, np.nan, 127.5, 128.5, 32767.5, 4294967296.0,
)  # fmt: skip


def values(dtype: np.dtype | type, seed: int = 0) -> Array:
    """Edge cases and random numbers of the type, in any order; half of the integers are random."""
    dtype = np.dtype(dtype)
    generator = np.random.default_rng((seed, dtype.itemsize, ord(dtype.kind)))
    if dtype.kind == "f":
        special = np.array(_FLOATS, np.float64)
        picked = generator.choice(np.concatenate([special, -special]), N)
        scaled = generator.normal(size=N) * 2.0 ** generator.integers(-12, 12, N)
        with np.errstate(over="ignore"):
            return np.where(generator.random(N) < 0.5, picked, scaled).astype(dtype)
    info = np.iinfo(dtype)
    special = np.array([*_INTEGERS, *(-x for x in _INTEGERS), info.max, info.min]).astype(object)
    wrapped = [int(x) & (2 ** (8 * dtype.itemsize) - 1) for x in special]
    edges = np.array(wrapped, f"u{dtype.itemsize}").view(dtype)
    random = generator.integers(info.min, info.max, N, dtype, endpoint=True)
    return np.where(generator.random(N) < 0.5, generator.choice(edges, N), random)


@dataclass(frozen=True)
class Case:
    """`body` makes %d of %a, %b, %c; `expected` makes it of arrays of the types `inputs`.

    tolerance: relative; 0 asks for the same bits, but of any NaN where NaN is expected.
    given: inputs in place of `values`.
    """

    body: str
    inputs: str
    output: str
    expected: Callable[..., Array]
    tolerance: float = 0.0
    given: Mapping[int, Array] = field(default_factory=dict)

    def arrays(self) -> list[Array]:
        types = self.inputs.split()
        arrays = [values(kind, seed) for seed, kind in enumerate(types)]
        for i, array in self.given.items():
            arrays[i] = np.resize(array, N).astype(types[i])
        return arrays

    def kernel(self, name: str) -> str:
        sizes = [np.dtype(kind).itemsize for kind in self.inputs.split()]
        output = np.dtype(self.output).itemsize
        loads = "".join(
            _LOAD.format(
                name=operand, bytes=size, width=8 * size, kind={"i": "s", "u": "u", "f": "b"}[np.dtype(kind).kind]
            )
            for operand, size, kind in zip("abc", sizes, self.inputs.split(), strict=False)
        )
        bits = [max(16, 8 * size) for size in (*sizes, 4, 4, 4)[:3]]
        return _KERNEL.format(
            name=name, loads=loads, body=self.body, bytes_d=output, width_d=8 * output,
            bits_a=bits[0], bits_b=bits[1], bits_c=bits[2], bits_d=max(16, 8 * output),
        )  # fmt: skip


def module(cases: Mapping[str, Case]) -> str:
    return HEADER + "".join(case.kernel(name) for name, case in cases.items())


def check(ptx: str, name: str, case: Case) -> None:
    arrays = case.arrays()
    out = np.zeros(N, case.output)
    unused = [np.zeros(1, np.int32)] * (3 - len(arrays))
    Kernel(ptx, name)((N // THREADS,), (THREADS,), out, *arrays, *unused)
    with np.errstate(all="ignore"):
        expected = np.asarray(case.expected(*arrays))
    assert expected.dtype == out.dtype, f"the expectation is {expected.dtype}, not {out.dtype}"
    if case.tolerance > 0:
        np.testing.assert_allclose(out, expected, rtol=case.tolerance, atol=1e-44)
        return
    word = f"u{out.itemsize}"
    same = out.view(word) == expected.view(word)
    if out.dtype.kind == "f":
        same |= np.isnan(out) & np.isnan(expected)
    wrong = np.flatnonzero(~same)
    shown = [tuple(x[i] for x in (*arrays, out, expected)) for i in wrong[:4]]
    assert len(wrong) == 0, f"{len(wrong)} differ; inputs, result, expected: {shown}"
