"""Arithmetic, logic and comparison."""

from __future__ import annotations

from .context import Context, Handler, handles, is_float
from .errors import SimulatorError
from .ptx import Instruction
from .types import CPP_TYPES, HALVES, SIZES

_UNARY_FLOAT = {
    "ex2": "std::exp2({})",
    "lg2": "std::log2({})",
    "rcp": "1 / ({})",
    "sqrt": "std::sqrt({})",
    "rsqrt": "1 / std::sqrt({})",
    "sin": "std::sin({})",
    "cos": "std::cos({})",
    "tanh": "std::tanh({})",
}
_ON_HALVES = {
    "add": "x + y",
    "sub": "x - y",
    "mul": "x * y",
    "fma": "fused(x, y, z)",
    "neg": "-x",
    "abs": "std::fabs(x)",
    "ex2": "std::exp2(x)",
    "tanh": "std::tanh(x)",
}
_SMALLEST_NORMAL = {"f16": "0x1p-14f", "bf16": "0x1p-126f"}
_WIDE = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}
_COMPARE = {
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
    "lo": "<", "ls": "<=", "hi": ">", "hs": ">=",
}  # fmt: skip
_DIRECTIONS = {"rm": "FE_DOWNWARD", "rp": "FE_UPWARD", "rz": "FE_TOWARDZERO"}
_BITWISE = {"and": "&", "or": "|", "xor": "^"}


def _unsigned(kind: str) -> str:
    return f"uint{8 * SIZES[kind]}_t"


def _nan(instruction: Instruction) -> str:
    return "true" if instruction.has("NaN") else "false"


def _float_extreme(instruction: Instruction, a: str, b: str) -> str:
    extreme = f"{instruction.base}imum<{_nan(instruction)}>"
    if instruction.has("xorsign"):  # of the magnitudes, with the sign of the product
        return (
            f"std::copysign({extreme}(std::fabs({a}), std::fabs({b})), "
            f"std::signbit({a}) != std::signbit({b}) ? -1.0f : 1.0f)"
        )
    return f"{extreme}({a}, {b})"


def _halves(handler: Handler) -> Handler:
    """Where the type is a half-precision float, computes in float, element by element."""

    def either(context: Context, instruction: Instruction) -> str:
        kind = instruction.type
        if kind not in HALVES:
            return handler(context, instruction)
        word, element = CPP_TYPES[kind], kind.removesuffix("x2")
        if instruction.base in ("max", "min"):
            operation = _float_extreme(instruction, "x", "y")
        else:
            operation = _ON_HALVES[instruction.base]
        if instruction.has("sat"):
            operation = f"saturate({operation})"
        if instruction.has("relu"):
            operation = f"maximum<true>({operation}, 0.0f)"
        flushes = ""
        if instruction.has("ftz"):
            smallest = _SMALLEST_NORMAL[element]
            flushes = " ".join(f"{name} = flush({name}, {smallest});" for name in "xyz")
            operation = f"flush({operation}, {smallest})"
        operands = ", ".join(context.bits(o, word) for o in instruction.operands[1:])
        return context.result(
            f"on_halves<{word}>({element}_to_float, float_to_{element}, "
            f"[](float x, float y, float z) {{ (void)y; (void)z; {flushes} return {operation}; }}, "
            f"{operands})"
        )

    return either


def _saturated(instruction: Instruction, expression: str) -> str:
    return f"saturate({expression})" if instruction.has("sat") else expression


def _directed(instruction: Instruction, factors_and_term: str) -> str:
    """a * b + c, rounded towards one side; "" where it is to the nearest."""
    found = next((m for m in instruction.modifiers if m in _DIRECTIONS), None)
    return f"directed_fma({_DIRECTIONS[found]}, {factors_and_term})" if found else ""


@handles("add", "sub", modifiers="rn rm rp rz ftz sat")
@_halves
def _add(context: Context, instruction: Instruction) -> str:
    kind, sign = instruction.type, "+" if instruction.base == "add" else "-"
    a, b = context.value(1), context.value(2)
    if is_float(kind):
        exact = _directed(instruction, f"{b}, {CPP_TYPES[kind]}({sign}1), {a}")
        return context.result(_saturated(instruction, exact or f"{a} {sign} {b}"))
    if instruction.has("sat"):
        return context.result(f"saturate_integer<{CPP_TYPES[kind]}>((int64_t){a} {sign} {b})")
    unsigned = _unsigned(kind)
    return context.result(f"({CPP_TYPES[kind]})(({unsigned}){a} {sign} ({unsigned}){b})")


@handles("mul", "mad", modifiers="rn ftz sat lo hi wide")
@_halves
def _multiply(context: Context, instruction: Instruction) -> str:
    kind, adds = instruction.type, instruction.base == "mad"
    a, b = context.value(1), context.value(2)
    if is_float(kind):
        product = f"std::fma({a}, {b}, {context.value(3)})" if adds else f"{a} * {b}"
        return context.result(_saturated(instruction, product))
    if instruction.has("sat"):
        raise SimulatorError("saturating integer multiplication is not simulated")
    form = instruction.one_of("lo", "hi", "wide")
    result = _WIDE[kind] if form == "wide" else kind
    cpp, unsigned = CPP_TYPES[result], _unsigned(result)
    if form == "hi":
        product = f"({unsigned})multiply_high({a}, {b})"
    else:
        # In 64 bits: two 16-bit factors would be promoted to int, and may overflow it.
        product = f"({unsigned})((uint64_t)({cpp}){a} * (uint64_t)({cpp}){b})"
    if adds:
        product += f" + ({unsigned}){context.value(3, result)}"
    return context.result(f"({cpp})({product})", result)


@handles("fma", modifiers="rn rm rp rz ftz sat relu")
@_halves
def _fma(context: Context, instruction: Instruction) -> str:
    operands = f"{context.value(1)}, {context.value(2)}, {context.value(3)}"
    fused = _directed(instruction, operands) or f"std::fma({operands})"
    return context.result(_saturated(instruction, fused))


@handles("div", "rem", modifiers="rn ftz full approx")
def _divide(context: Context, instruction: Instruction) -> str:
    a, b = context.value(1), context.value(2)
    if is_float(instruction.type):
        return context.result(f"{a} / {b}")
    function = "divide" if instruction.base == "div" else "remainder"
    return context.result(f"ptxsim::{function}({a}, {b}, {context.site()})")


@handles("max", "min", modifiers="NaN ftz xorsign abs")
@_halves
def _extreme(context: Context, instruction: Instruction) -> str:
    kind, name = instruction.type, instruction.base
    a, b = context.value(1), context.value(2)
    if len(instruction.operands) != 3:
        raise SimulatorError("three-operand max and min are not simulated")
    if is_float(kind):
        return context.result(_float_extreme(instruction, a, b))
    return context.result(f"std::{name}<{CPP_TYPES[kind]}>({a}, {b})")


@handles("neg", "abs", modifiers="ftz")
@_halves
def _sign(context: Context, instruction: Instruction) -> str:
    kind, x = instruction.type, context.value(1)
    if is_float(kind):
        return context.result(f"-{x}" if instruction.base == "neg" else f"std::fabs({x})")
    negated = f"({CPP_TYPES[kind]})(0 - ({_unsigned(kind)}){x})"
    return context.result(negated if instruction.base == "neg" else f"{x} < 0 ? {negated} : {x}")


@handles("and", "or", "xor")
def _bitwise(context: Context, instruction: Instruction) -> str:
    cpp = CPP_TYPES[instruction.type]
    a, b = context.value(1), context.value(2)
    return context.result(f"({cpp})({a} {_BITWISE[instruction.base]} {b})")


@handles("not")
def _not(context: Context, instruction: Instruction) -> str:
    kind = instruction.type
    return context.result(f"{'!' if kind == 'pred' else f'({CPP_TYPES[kind]})~'}{context.value(1)}")


@handles("shl", "shr")
def _shift(context: Context, instruction: Instruction) -> str:
    side = "left" if instruction.base == "shl" else "right"
    return context.result(f"shift_{side}({context.value(1)}, {context.value(2, 'u32')})")


@handles("shf", modifiers="l r wrap clamp")
def _funnel(context: Context, instruction: Instruction) -> str:
    side = "left" if instruction.one_of("l", "r") == "l" else "right"
    operands = ", ".join(context.value(i) for i in (1, 2, 3))
    wrap = "true" if instruction.has("wrap") else "false"
    return context.result(f"funnel_{side}({operands}, {wrap})")


@handles("lop3")
def _lop3(context: Context, instruction: Instruction) -> str:
    return context.result(f"lop3({', '.join(context.value(i) for i in (1, 2, 3, 4))})")


@handles("prmt")
def _permute(context: Context, instruction: Instruction) -> str:
    return context.result(f"permute({', '.join(context.value(i) for i in (1, 2, 3))})")


@handles("bfe")
def _extract(context: Context, instruction: Instruction) -> str:
    position, length = context.value(2, "u32"), context.value(3, "u32")
    return context.result(f"extract_bits({context.value(1)}, {position}, {length})")


@handles("bfi")
def _insert(context: Context, instruction: Instruction) -> str:
    position, length = context.value(3, "u32"), context.value(4, "u32")
    return context.result(
        f"insert_bits({context.value(1)}, {context.value(2)}, {position}, {length})"
    )


@handles("popc", "clz", "bfind")
def _count_bits(context: Context, instruction: Instruction) -> str:
    functions = {"popc": "__builtin_popcountll", "clz": "leading_zeros", "bfind": "highest_bit"}
    return context.result(f"{functions[instruction.base]}({context.value(1)})", "u32")


@handles("brev")
def _reverse(context: Context, instruction: Instruction) -> str:
    return context.result(f"reverse_bits({context.value(1)})")


@handles(*_UNARY_FLOAT, modifiers="approx rn ftz")
@_halves
def _unary_float(context: Context, instruction: Instruction) -> str:
    return context.result(_UNARY_FLOAT[instruction.base].format(context.value(1)))


@handles("copysign")
def _copysign(context: Context, instruction: Instruction) -> str:
    return context.result(f"std::copysign({context.value(2)}, {context.value(1)})")


@handles("testp", modifiers="finite infinite number notanumber normal subnormal")
def _test(context: Context, instruction: Instruction) -> str:
    tests = {
        "finite": "std::isfinite({0})",
        "infinite": "std::isinf({0})",
        "number": "!std::isnan({0})",
        "notanumber": "std::isnan({0})",
        "normal": "std::isnormal({0}) || {0} == 0",
        "subnormal": "std::fpclassify({0}) == FP_SUBNORMAL",
    }
    test = tests[instruction.one_of(*tests)].format(context.value(1))
    return context.assign(instruction.operands[0], test, "u32")


@handles("selp")
def _select(context: Context, instruction: Instruction) -> str:
    condition = context.predicate(instruction.operands[3])
    return context.result(f"{condition} ? {context.value(1)} : {context.value(2)}")


def _comparison(context: Context, instruction: Instruction, compare: str) -> str:
    kind = instruction.type
    a, b = context.number(1), context.number(2)
    if is_float(kind) or kind in HALVES:
        if compare in ("nan", "num"):
            return f"{'' if compare == 'nan' else '!'}std::isunordered({a}, {b})"
        if compare == "ne":
            return f"({a} < {b}) || ({a} > {b})"
        if compare.endswith("u") and compare[:-1] in _COMPARE:
            return f"!std::isunordered({a}, {b}) ? {a} {_COMPARE[compare[:-1]]} {b} : true"
    return f"{a} {_COMPARE[compare]} {b}"


@handles("setp", modifiers=f"{' '.join(_COMPARE)} equ neu ltu leu gtu geu nan num and or xor ftz")
def _set_predicate(context: Context, instruction: Instruction) -> str:
    text = f"{{ bool c = {_comparison(context, instruction, instruction.modifiers[0])}; "
    combination = next((m for m in instruction.modifiers[1:] if m in _BITWISE), None)
    if combination is not None:  # before the destinations change, which it may be one of
        text += f"const bool other = {context.predicate(instruction.operands[3])}; "
    for destination, value in zip(instruction.operands[0].split("|"), ("c", "!c"), strict=False):
        if combination is not None:
            value = f"{value} {_BITWISE[combination]} other"
        text += context.assign(destination.strip(), value, "u32") + " "
    return text + "}"
