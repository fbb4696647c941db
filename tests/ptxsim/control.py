"""Moves, branches, calls and returns."""

from __future__ import annotations

from .context import Context, elements, handles, identifier
from .errors import SimulatorError
from .ptx import Instruction, split_operands
from .types import CPP_TYPES, SIZES


@handles("mov")
def _move(context: Context, instruction: Instruction) -> str:
    kind = instruction.type
    destination, source = instruction.operands
    word = f"uint{8 * SIZES[kind]}_t"
    if destination.startswith("{"):
        parts = elements(destination)
        width = 8 * SIZES[kind] // len(parts)
        unpacked = " ".join(
            context.assign(part, f"(uint{width}_t)(x >> {i * width})", f"b{width}")
            for i, part in enumerate(parts)
        )
        return f"{{ {word} x = {context.bits(source, word)}; {unpacked} }}"
    if source.startswith("{"):
        parts = elements(source)
        width = 8 * SIZES[kind] // len(parts)
        packed = " | ".join(
            f"({word})(uint{width}_t){context.bits(part, f'uint{width}_t')} << {i * width}"
            for i, part in enumerate(parts)
        )
        return context.result(packed)
    return context.result(context.bits(source, CPP_TYPES[kind]))


@handles("bra", modifiers="uni")
def _branch(context: Context, instruction: Instruction) -> str:
    return f"goto {identifier('L', instruction.operands[0])};"


@handles("ret", "exit", modifiers="uni")
def _return(context: Context, instruction: Instruction) -> str:
    return "return;"


@handles("trap")
def _trap(context: Context, instruction: Instruction) -> str:
    return f'fail({context.site()}, "trap");'


@handles("call", modifiers="uni")
def _call(context: Context, instruction: Instruction) -> str:
    operands = instruction.operands
    results: tuple[str, ...] = ()
    if operands[0].startswith("("):
        results, operands = split_operands(operands[0][1:-1]), operands[1:]
    name = operands[0]
    arguments = split_operands(operands[1][1:-1]) if len(operands) > 1 else ()
    if name == "__assertfail":
        return f'fail({context.site()}, "an assertion of the kernel failed");'
    if name.startswith("%"):
        raise SimulatorError("indirect calls are not simulated")
    pointers = ", ".join(identifier("p", x) for x in (*results, *arguments))
    return f"{identifier('f', name)}({pointers});"
