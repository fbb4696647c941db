"""ldmatrix, stmatrix, mma.sync and wgmma."""

from __future__ import annotations

import re

from .context import Context, elements, handles
from .errors import SimulatorError
from .ptx import Instruction

_ELEMENTS = {"bf16": "kBf16", "f16": "kF16", "tf32": "kTf32", "s8": "kS8", "u8": "kU8"}
_MMA = re.compile(
    r"mma\.sync\.aligned\.m16n8k(\d+)\.row\.col\."
    r"(?:f32\.(bf16|f16|tf32)\.\2\.f32|(?:satfinite\.)?s32\.(s8|u8)\.\3\.s32)"
)
_MMA_F64 = re.compile(r"mma\.sync\.aligned\.m(8|16)n8k(\d+)\.row\.col\.f64\.f64\.f64\.f64")
_MMA_REGISTERS = {"bf16": 2, "f16": 2, "tf32": 1, "s8": 4, "u8": 4}
_WGMMA = re.compile(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k(\d+)\.f32\.(bf16|f16|tf32)\.\3")


@handles("ldmatrix", "stmatrix", modifiers="sync aligned m8n8 x1 x2 x4 trans shared shared::cta")
def _matrices(context: Context, instruction: Instruction) -> str:
    count = int(instruction.one_of("x1", "x2", "x4")[1])
    if instruction.type != "b16":
        raise SimulatorError(f"matrices of {instruction.type} are not simulated")
    transpose = "true" if instruction.has("trans") else "false"
    first, second = instruction.operands
    if instruction.base == "ldmatrix":
        row = context.shared_address(second)
        call = f"load_matrices(x, {count}, {transpose}, {row}, {context.site()})"
        return f"{{ uint32_t x[{count}]; {call}; {context.results(first, 'x', 'b32')} }}"
    row = context.shared_address(first)
    call = f"store_matrices(x, {count}, {transpose}, {row}, {context.site()})"
    return f"{{ uint32_t x[] = {{{context.list(second, 'b32')}}}; {call}; }}"


@handles("mma", modifiers="*")
def _mma(context: Context, instruction: Instruction) -> str:
    d, a, b, c = instruction.operands
    if match := _MMA_F64.fullmatch(instruction.opcode):
        inputs = ", ".join(context.list(x, "b64") for x in (a, b, c))
        call = f"mma_f64(d, in, {match[1]}, {match[2]}, {context.site()})"
        return (
            f"{{ uint64_t in[] = {{{inputs}}}, d[{len(elements(d))}]; {call}; "
            f"{context.results(d, 'd', 'b64')} }}"
        )
    match = _MMA.fullmatch(instruction.opcode)
    if match is None:
        raise SimulatorError(f"the form {instruction.opcode} is not simulated")
    k, element = int(match[1]), match[2] or match[3]
    registers = 3 * k // (4 * _MMA_REGISTERS[element])
    if len(elements(a)) + len(elements(b)) != registers:
        raise SimulatorError(f"expected {registers} registers of A and B")
    inputs = ", ".join(context.list(x, "b32") for x in (a, b, c))
    saturate = "true" if instruction.has("satfinite") else "false"
    call = f"mma(d, in, {k}, Element::{_ELEMENTS[element]}, {saturate}, {context.site()})"
    return f"{{ uint32_t in[] = {{{inputs}}}, d[4]; {call}; {context.results(d, 'd', 'b32')} }}"


@handles("wgmma", modifiers="*")
def _wgmma(context: Context, instruction: Instruction) -> str:
    operands, site = instruction.operands, context.site()
    if instruction.has("fence"):
        return ";"
    if instruction.has("commit_group"):
        return f"wgmma_commit({site});"
    if instruction.has("wait_group"):
        return f"wgmma_wait({context.value(0, 'u32')}, {site});"
    match = _WGMMA.fullmatch(instruction.opcode)
    if match is None:
        raise SimulatorError(f"the form {instruction.opcode} is not simulated")
    n, k, element = int(match[1]), int(match[2]), match[3]
    d, a, b, scale_d, scale_a, scale_b, *transposes = operands
    in_registers = a.startswith("{")
    flags = [context.bits(t, "bool") for t in transposes]
    if element == "tf32":
        flags = ["false", "false"]
    elif in_registers:
        flags = ["false", *flags]
    shape = (
        f"{{{n}, {k}, Element::{_ELEMENTS[element]}, {context.predicate(scale_d)}, "
        f"{scale_a}, {scale_b}, {', '.join(flags)}}}"
    )
    a_registers = context.list(a, "b32") if in_registers else "0"
    a_descriptor = "0" if in_registers else context.bits(a, "uint64_t")
    call = (
        f"wgmma(d, {shape}, {'a' if in_registers else 'nullptr'}, {a_descriptor}, "
        f"{context.bits(b, 'uint64_t')}, {site})"
    )
    return (
        f"{{ uint32_t d[] = {{{context.list(d, 'b32')}}}, a[] = {{{a_registers}}}; {call}; "
        f"{context.results(d, 'd', 'b32')} }}"
    )
