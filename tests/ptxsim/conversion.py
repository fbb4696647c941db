"""cvt: between all integers and floats, with the rounding that each form has."""

from __future__ import annotations

from .context import Context, handles
from .errors import SimulatorError
from .ptx import Instruction
from .types import CPP_TYPES, FLOATS, SIZES

_TO_INTEGRAL = {
    "rni": "std::nearbyint",
    "rzi": "std::trunc",
    "rmi": "std::floor",
    "rpi": "std::ceil",
}
_ROUNDINGS = ("rn", "rz", "rm", "rp", "rna", *_TO_INTEGRAL)


def _pack(context: Context, instruction: Instruction, to: str, rounding: str | None) -> str:
    """Two floats to a register of two halves; the first operand comes out on top."""
    element = to.removesuffix("x2")
    encode = _encode(element, rounding)
    relu = "maximum<true>({}, 0.0f)" if instruction.has("relu") else "{}"
    high, low = (f"{encode}({relu.format(context.value(i, 'f32'))})" for i in (1, 2))
    return context.result(f"(uint32_t){high} << 16 | {low}", to)


def _encode(element: str, rounding: str | None) -> str:
    if rounding == "rn":
        return f"float_to_{element}"
    if rounding == "rz" and element == "bf16":
        return "float_to_bf16_toward_zero"
    raise SimulatorError(f"rounding {rounding} to {element} is not simulated")


def _to_float(instruction: Instruction, to: str, source: str, x: str, rounding: str | None) -> str:
    if rounding in _TO_INTEGRAL:
        x = f"{_TO_INTEGRAL[rounding]}({x})"
    elif rounding not in (None, "rn"):
        raise SimulatorError(f"rounding {rounding} from {source} to {to} is not simulated")
    value = f"({CPP_TYPES[to]})({x})"
    return f"saturate({value})" if instruction.has("sat") else value


@handles("cvt", modifiers=f"{' '.join(_ROUNDINGS)} ftz sat relu")
def _convert(context: Context, instruction: Instruction) -> str:
    kinds = [m for m in instruction.modifiers if m in SIZES]
    to, source = kinds[0], kinds[-1]
    rounding = next((m for m in instruction.modifiers if m in _ROUNDINGS), None)
    if to in ("bf16x2", "f16x2"):
        return _pack(context, instruction, to, rounding)
    x = context.number(1, source)
    from_float = source in FLOATS or source in ("f16", "bf16")
    if to == "tf32":
        if rounding not in ("rna", "rn"):
            raise SimulatorError(f"rounding {rounding} to tf32 is not simulated")
        return context.result(f"float_to_tf32_{rounding}({x})", to)
    if to == "f16" and source == "f64":
        return context.result(f"double_to_f16({x})", to)
    if to in ("f16", "bf16"):
        if rounding in _TO_INTEGRAL:
            x, rounding = f"{_TO_INTEGRAL[rounding]}({x})", "rn"
        if instruction.has("relu"):
            x = f"maximum<true>({x}, 0.0f)"
        if instruction.has("sat"):
            x = f"saturate({x})"
        if not from_float:
            x = f"(long double)({x})"  # has all bits of a 64-bit integer
        return context.result(f"{_encode(to, rounding)}(narrow({x}))", to)
    if to in FLOATS:
        return context.result(_to_float(instruction, to, source, x, rounding), to)
    cpp = CPP_TYPES[to]
    if from_float:
        if rounding not in _TO_INTEGRAL:
            raise SimulatorError(f"a conversion from {source} to {to} without a rounding")
        return context.result(f"float_to_integer<{cpp}>({_TO_INTEGRAL[rounding]}({x}))", to)
    value = f"saturate_integer<{cpp}>({x})" if instruction.has("sat") else f"({cpp}){x}"
    return context.result(value, to)
