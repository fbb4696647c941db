"""Modules of hand-written PTX: a test says the instructions, this adds what stands around them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .kernel import Kernel, Options

Array = npt.NDArray[np.generic]

_DEFAULT = Options()
_HEADER = ".version 8.4\n.target sm_90a\n.address_size 64\n"
_REGISTERS = """\
    .reg .pred %p<16>;
    .reg .b16 %h<64>;
    .reg .b32 %r<64>, %thread, %block, %lane;
    .reg .b64 %d<32>;
    mov.u32 %thread, %tid.x;
    mov.u32 %block, %ctaid.x;
    and.b32 %lane, %thread, 31;
"""
# Of 16, 32 and 64 bits: each register of a row has the prefix of its size.
_PREFIXES = {"h": 16, "": 32, "d": 64}


def kernel(name: str, parameters: Sequence[str], body: str) -> str:
    """A kernel whose parameters, all of 64 bits, are in registers of their names.

    Besides them the body has %p0 to %p15, %h0 to %h63, %r0 to %r63, %d0 to %d31 of their sizes,
    %thread, %block and %lane.
    """
    declared = ", ".join(f".param .u64 {p}" for p in parameters)
    loads = "".join(f"    .reg .b64 %{p};\n    ld.param.u64 %{p}, [{p}];\n" for p in parameters)
    return f".visible .entry {name}({declared}) {{\n{_REGISTERS}{loads}{body}\n    ret;\n}}\n"


def module(*functions: str, declarations: str = "") -> str:
    return f"{_HEADER}{declarations}\n{''.join(functions)}"


@dataclass(frozen=True)
class Row:
    """Instructions that every thread runs, on its own elements of the inputs.

    text: computes %x from %a, %b and %c. The names are %hx, %ha, ... where the inputs or the
    result have 16 bits, and %dx, %da, ... where they have 64.
    expected: of all threads; the result must have these bits, or be this close. A NaN is a NaN.
    """

    text: str
    inputs: tuple[Array, ...]  # each [threads]
    expected: Array  # [threads]
    rtol: float = 0


def _unsigned(array: Array) -> Array:
    return np.ascontiguousarray(array).view(f"u{array.itemsize}").astype(np.uint64)


def _row(i: int, row: Row, threads: int) -> str:
    """Inputs and outputs lie in words of 8 bytes."""
    used = set(re.findall(r"%([hd]?[abcx])\b", row.text))
    registers, before, after = [], [], []
    for prefix, bits in _PREFIXES.items():
        for j, name in enumerate("abc"):
            if prefix + name in used:
                registers.append(f".reg .b{bits} %{prefix}{name};")
                offset = 8 * threads * (3 * i + j)
                before.append(f"ld.global.b{bits} %{prefix}{name}, [%inputs+{offset}];")
        if f"{prefix}x" in used:
            registers.append(f".reg .b{bits} %{prefix}x;")
            after.append(f"st.global.b{bits} [%outputs+{8 * threads * i}], %{prefix}x;")
    lines = [*registers, *before, row.text, *after]
    return "    {\n" + "".join(f"    {line}\n" for line in lines) + "    }\n"


def rows_kernel(rows: Sequence[Row], declarations: str = "") -> str:
    """A module whose kernel runs the rows one after the other."""
    threads = len(rows[0].expected)
    own = "mul.wide.u32 %d0, %thread, 8; add.s64 %inputs, %inputs, %d0; "
    own += "add.s64 %outputs, %outputs, %d0;\n"
    body = own + "".join(_row(i, row, threads) for i, row in enumerate(rows))
    return module(kernel("rows", ("inputs", "outputs"), body), declarations=declarations)


def check_rows(
    rows: Sequence[Row],
    declarations: str = "",
    portable: bool = False,
    options: Options = _DEFAULT,
) -> None:
    """Runs the rows in a block of as many threads as they have elements; asserts the results."""
    threads = len(rows[0].expected)
    inputs = np.zeros((len(rows), 3, threads), np.uint64)
    outputs = np.zeros((len(rows), threads), np.uint64)
    for i, row in enumerate(rows):
        for j, array in enumerate(row.inputs):
            inputs[i, j] = _unsigned(array)
    ptx = rows_kernel(rows, declarations)
    Kernel(ptx, portable=portable)((1,), (threads,), inputs, outputs, options=options)
    wrong = [_difference(row, words) for row, words in zip(rows, outputs, strict=True)]
    assert not any(wrong), "\n".join(filter(None, wrong))


def _difference(row: Row, words: npt.NDArray[np.uint64]) -> str:
    expected = row.expected
    actual = words.astype(f"u{expected.itemsize}").view(expected.dtype)
    same = words == _unsigned(expected)
    if row.rtol:
        same |= np.isclose(actual, expected, row.rtol, 0)
    same |= np.isnan(actual) & np.isnan(expected)
    if same.all():
        return ""
    first = int(np.argmin(same))
    given = ", ".join(str(array[first]) for array in row.inputs)
    return (
        f"{row.text} of {given}: expected {expected[first]}, got {actual[first]}, "
        f"in {np.count_nonzero(~same)} of {len(words)} threads"
    )
