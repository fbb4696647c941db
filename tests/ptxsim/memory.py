"""Loads, stores, atomics, address conversion and cp.async."""

from __future__ import annotations

from .context import Context, elements, handles
from .errors import SimulatorError
from .ptx import Instruction
from .types import CPP_TYPES, SIZES

_SPACES = ("param", "shared", "global", "local", "const")
_CACHING = (
    "v2 v4 v8 volatile relaxed acquire release acq_rel weak cta gpu sys cluster nc ca cg cs cv lu "
    "wb wt L1::evict_normal L1::evict_unchanged L1::evict_first L1::evict_last L1::no_allocate "
    "L2::cache_hint L2::64B L2::128B L2::256B L2::evict_first L2::evict_last L2::evict_normal "
    "param param::entry param::func shared shared::cta global local const"
)
_ATOMICS = {
    "add": "old + {v}",
    "max": "std::max(old, {v})",
    "min": "std::min(old, {v})",
    "exch": "{v}",
    "cas": "old == {v} ? {w} : old",
    "and": "old & {v}",
    "or": "old | {v}",
    "xor": "old ^ {v}",
    "inc": "old >= {v} ? 0 : old + 1",
    "dec": "old == 0 || old > {v} ? {v} : old - 1",
}


def _space(instruction: Instruction) -> str:
    found = {m.split("::")[0] for m in instruction.modifiers} & set(_SPACES)
    if len(found) > 1:
        raise SimulatorError(f"state spaces {', '.join(sorted(found))} in one instruction")
    space = found.pop() if found else "generic"
    return "global" if space == "const" else space


def _address(context: Context, operand: str, space: str) -> str:
    return context.shared_address(operand) if space == "shared" else context.address(operand)


def _parameter(context: Context, operand: str, size: int) -> str:
    """The first of `size` bytes: of a parameter, or of the kernel's by an address in a register."""
    base, offset = context.split_address(operand)
    if base in context.parameters:
        return f"{context.parameters[base]} + {offset}"
    if context.register_type(base) is None or not context.parameter_bytes:
        raise SimulatorError(f"unknown parameter {base!r}")
    address = context.address(operand)
    return f"parameter_at({address}, {size}, {context.parameter_bytes}, {context.site()})"


@handles("ld", "ldu", modifiers=_CACHING)
def _load(context: Context, instruction: Instruction) -> str:
    kind, space = instruction.type, _space(instruction)
    destination, source = instruction.operands[:2]
    cpp, count = CPP_TYPES[kind], len(elements(destination))
    if space == "param":
        first = _parameter(context, source, count * SIZES[kind])
        return " ".join(
            context.assign(name, f"load_parameter<{cpp}>({first} + {i * SIZES[kind]})", kind)
            for i, name in enumerate(elements(destination))
        )
    load = f"load_{space}<{cpp}, {count}>({_address(context, source, space)}, x, {context.site()})"
    return f"{{ {cpp} x[{count}]; {load}; {context.results(destination, 'x', kind)} }}"


@handles("st", modifiers=_CACHING)
def _store(context: Context, instruction: Instruction) -> str:
    kind, space = instruction.type, _space(instruction)
    destination, source = instruction.operands[:2]
    cpp, count = CPP_TYPES[kind], len(elements(source))
    if space == "param":
        first = _parameter(context, destination, len(elements(source)) * SIZES[kind])
        return " ".join(
            f"store_parameter<{cpp}>({first} + {i * SIZES[kind]}, {context.bits(name, cpp)});"
            for i, name in enumerate(elements(source))
        )
    address = _address(context, destination, space)
    store = f"store_{space}<{cpp}, {count}>({address}, x, {context.site()})"
    return f"{{ {cpp} x[] = {{{context.list(source, kind)}}}; {store}; }}"


@handles("atom", "red", modifiers=f"{_CACHING} {' '.join(_ATOMICS)} noftz")
def _atomic(context: Context, instruction: Instruction) -> str:
    kind, space = instruction.type, _space(instruction)
    operands = instruction.operands if instruction.base == "atom" else ("_", *instruction.operands)
    old, address, value = operands[:3]
    cpp = CPP_TYPES[kind]
    operation = next(m for m in instruction.modifiers if m in _ATOMICS)
    wide = elements(value)
    olds = elements(old) if old != "_" else ("_",) * len(wide)
    parts = []
    for i, (destination, element) in enumerate(zip(olds, wide, strict=True)):
        v = context.bits(element, cpp)
        w = context.bits(operands[3], cpp) if operation == "cas" else ""
        after = _ATOMICS[operation].format(v="v", w="w")
        if kind in ("f16", "bf16", "f16x2", "bf16x2"):
            if operation not in ("add", "max", "min"):
                raise SimulatorError(f"atomic {operation} of {kind} is not simulated")
            half = kind.removesuffix("x2")
            body = _ATOMICS[operation].format(v="v")
            after = (
                f"on_halves<{cpp}>({half}_to_float, float_to_{half}, "
                f"[](float old, float v, float) {{ return {body}; }}, old, v)"
            )
        where = f"{_address(context, address, space)} + {i * SIZES[kind]}"
        call = (
            f"atomic_{space}<{cpp}>({where}, [=]({cpp} old) -> {cpp} {{ return {after}; }}, "
            f"{context.site()})"
        )
        second = f" {cpp} w = {w};" if w else ""
        parts.append(
            f"{{ {cpp} v = {v};{second} {cpp} before = {call}; "
            f"{context.assign(destination, 'before', kind)} }}"
        )
    return " ".join(parts)


@handles("cvta", modifiers="to shared shared::cta global local const param")
def _convert_address(context: Context, instruction: Instruction) -> str:
    source = context.value(1, "u64")
    if _space(instruction) == "shared":
        direction = "generic_to_shared" if instruction.has("to") else "shared_to_generic"
        return context.result(f"{direction}({source})", "u64")
    if _space(instruction) == "param":
        raise SimulatorError("generic addresses of parameters are not simulated")
    return context.result(source, "u64")


@handles("isspacep", modifiers="shared shared::cta global local")
def _in_space(context: Context, instruction: Instruction) -> str:
    x = context.value(1, "u64")
    tests = {
        "shared": f"is_shared({x})",
        "local": f"is_local({x})",
        "global": f"!is_shared({x}) && !is_local({x})",
    }
    return context.assign(instruction.operands[0], tests[_space(instruction)], "u32")


@handles(
    "cp",
    modifiers="async ca cg shared shared::cta global commit_group wait_group wait_all "
    "L2::cache_hint L2::64B L2::128B L2::256B",
)
def _copy(context: Context, instruction: Instruction) -> str:
    operands, site = instruction.operands, context.site()
    if instruction.has("commit_group"):
        return "cp_async_commit();"
    if instruction.has("wait_group"):
        return f"cp_async_wait({context.value(0, 'u32')}, {site});"
    if instruction.has("wait_all"):
        return f"cp_async_wait_all({site});"
    target, source = context.shared_address(operands[0]), context.address(operands[1])
    size = context.value(2, "u32")
    valid = size
    if len(operands) > 3 and not (len(operands) == 4 and instruction.has("L2::cache_hint")):
        valid = context.value(3, "u32")
        if context.register_type(operands[3].removeprefix("!")) == "bool":  # whether to ignore it
            valid = f"{context.predicate(operands[3])} ? 0 : {size}"
    return f"cp_async({target}, {source}, {size}, {valid}, {site});"
