"""What the translation of an instruction can see: registers, variables, the place it stands at."""

from __future__ import annotations

import re
from collections.abc import Callable

from .errors import SimulatorError
from .ptx import Instruction, Variable, split_operands
from .types import CPP_TYPES, FLOATS, REGISTER_TYPES, SIZES

_SPECIAL = {
    **{
        f"%{name}.{axis}": f"current->{name}.{axis}"
        for name in ("tid", "ctaid", "ntid", "nctaid")
        for axis in "xyz"
    },
    "%laneid": "(current->index & 31)",
    "%warpid": "(current->index >> 5)",
    "%lanemask_lt": "((1u << (current->index & 31)) - 1)",
    "%lanemask_le": "((2u << (current->index & 31)) - 1)",
    "%lanemask_eq": "(1u << (current->index & 31))",
    "%lanemask_ge": "(~0u << (current->index & 31))",
    "%lanemask_gt": "(~1u << (current->index & 31))",
    "%smid": "0",
    "%clock": "0",
    "%clock64": "0",
    "%globaltimer": "0",
    "%cluster_ctarank": "0",
    "%cluster_ctaid.x": "0",
    "WARP_SZ": "32",
}
_ADDRESS = re.compile(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\w+)\s*)?\]")
_FLOAT_BITS = re.compile(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})")
_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?")


def identifier(prefix: str, name: str) -> str:
    """A C++ name; the prefix keeps registers, labels and functions apart, and from keywords."""
    return prefix + re.sub(r"\W", "_", name)


def integer(text: str) -> int:
    """The value of an integer constant; a leading 0 means octal, as in C."""
    digits = text.strip().rstrip("U")
    octal = re.fullmatch(r"-?0[0-7]+", digits)
    return int(digits, 8 if octal else 0)


class Context:
    """The scopes of one function, and the C++ text of its operands."""

    def __init__(self, shared: dict[str, int], in_memory: set[str]) -> None:
        self._shared = shared
        self._in_memory = in_memory  # names of arrays of the generated code
        self._registers: list[dict[str, str]] = [{}]
        self._numbered: list[dict[str, str]] = [{}]
        self.parameters: dict[str, str] = {}  # C++ expression of the first byte
        self.parameter_bytes = 0  # of a kernel, which may take their addresses
        self.sites: list[tuple[str, int]] = []
        self.instruction = Instruction(0, "", "", "", ())
        self._last_with_site = self.instruction

    # ---- scopes
    def open_scope(self) -> None:
        self._registers.append({})
        self._numbered.append({})

    def close_scope(self) -> None:
        self._registers.pop()
        self._numbered.pop()

    def declare_register(self, variable: Variable) -> None:
        scope = self._numbered if variable.numbered else self._registers
        scope[-1][variable.name] = REGISTER_TYPES[variable.type]

    def declare_array(self, name: str) -> None:
        self._in_memory.add(name)

    def register_type(self, name: str) -> str | None:
        prefix = name.rstrip("0123456789")
        for registers, numbered in zip(
            reversed(self._registers), reversed(self._numbered), strict=True
        ):
            if name in registers:
                return registers[name]
            if prefix != name and prefix in numbered:
                return numbered[prefix]
        return None

    # ---- operands
    def bits(self, operand: str, cpp: str) -> str:
        """An expression of the C++ type: the bits of the operand, whatever type they had."""
        if operand.startswith("!"):
            return f"!{self.bits(operand[1:], cpp)}"
        if operand in _SPECIAL:
            return f"({cpp})({_SPECIAL[operand]})"
        register = self.register_type(operand)
        if register is not None:
            name = identifier("r", operand)
            return name if register == "bool" else f"bits<{cpp}>({name})"
        if match := _FLOAT_BITS.fullmatch(operand):
            return f"bits<{cpp}>(0x{match[1]}u)" if match[1] else f"bits<{cpp}>(0x{match[2]}ull)"
        if _INTEGER.fullmatch(operand):
            value = integer(operand) & (2**64 - 1)
            if cpp == "bool":
                return "true" if value else "false"
            return (
                f"bits<{cpp}>({value}ull)" if cpp in ("float", "double") else f"({cpp}){value}ull"
            )
        base, _, offset = (part.strip() for part in operand.partition("+"))
        if base in self._shared:
            return f"({cpp}){self._shared[base] + integer(offset or '0')}u"
        if base in self.parameters and self.parameter_bytes:
            return f"({cpp})((uint64_t)({self.parameters[base]}) + {integer(offset or '0')})"
        if base in self._in_memory:
            return f"({cpp})((uint64_t){identifier('v', base)} + {integer(offset or '0')})"
        raise SimulatorError(f"unknown operand {operand!r}")

    def value(self, index: int, kind: str | None = None) -> str:
        """Operand `index` of the instruction as a value of a PTX type (its own, if not given)."""
        kind = kind or self.instruction.type
        text = self.bits(self.instruction.operands[index], CPP_TYPES[kind])
        return f"flush({text})" if kind == "f32" and self.instruction.has("ftz") else text

    def number(self, index: int, kind: str | None = None) -> str:
        """As `value`, but half-precision floats are decoded to float."""
        kind = kind or self.instruction.type
        if kind in ("f16", "bf16"):
            return f"{kind}_to_float({self.value(index, kind)})"
        return self.value(index, kind)

    def predicate(self, operand: str) -> str:
        return self.bits(operand, "bool")

    def assign(self, operand: str, expression: str, kind: str) -> str:
        """Stores a value of a PTX type in a register."""
        if operand == "_":
            return f"(void)({expression});"
        register = self.register_type(operand)
        if register is None:
            raise SimulatorError(f"unknown register {operand!r}")
        name = identifier("r", operand)
        if register == "bool":
            return f"{name} = (bool)({expression});"
        return f"{name} = widen<{register}, {CPP_TYPES[kind]}>({expression});"

    def result(self, expression: str, kind: str | None = None) -> str:
        """Stores the result of the instruction in its first operand."""
        kind = kind or self.instruction.type
        if kind == "f32" and self.instruction.has("ftz"):
            expression = f"flush({expression})"
        return self.assign(self.instruction.operands[0], expression, kind)

    def results(self, operand: str, array: str, kind: str) -> str:
        """Stores the elements of a C++ array in a register or a braced list of them."""
        names = elements(operand)
        return " ".join(self.assign(name, f"{array}[{i}]", kind) for i, name in enumerate(names))

    def list(self, operand: str, kind: str) -> str:
        """The values of a braced list, as a C++ initializer list without its braces."""
        return ", ".join(self.bits(name, CPP_TYPES[kind]) for name in elements(operand))

    # ---- addresses
    def split_address(self, operand: str) -> tuple[str, int]:
        match = _ADDRESS.fullmatch(operand)
        if match is None:
            raise SimulatorError(f"cannot parse the address {operand!r}")
        return match[1], integer(match[2]) if match[2] else 0

    def address(self, operand: str) -> str:
        base, offset = self.split_address(operand)
        return f"(uint64_t)({self.bits(base, 'uint64_t')} + ({offset}ll))"

    def shared_address(self, operand: str) -> str:
        base, offset = self.split_address(operand)
        return f"(uint32_t)({self.bits(base, 'uint32_t')} + ({offset}))"

    def site(self) -> str:
        """A pointer to the place of this instruction, unique to it."""
        if self.instruction is not self._last_with_site:  # of one line there may be several
            self.sites.append((self.instruction.location, self.instruction.line))
            self._last_with_site = self.instruction
        return f"&sites[{len(self.sites) - 1}]"


def elements(operand: str) -> tuple[str, ...]:
    return split_operands(operand[1:-1]) if operand.startswith("{") else (operand,)


Handler = Callable[[Context, Instruction], str]
# One instruction, several forms: the modifiers that the handler understands besides types.
HANDLERS: dict[str, tuple[Handler, frozenset[str]]] = {}
_ANY_TYPE = frozenset(SIZES)


def handles(*bases: str, modifiers: str = "") -> Callable[[Handler], Handler]:
    """Registers the translation of instructions. Modifiers that are not listed are errors."""

    def register(handler: Handler) -> Handler:
        for base in bases:
            HANDLERS[base] = (handler, frozenset(modifiers.split()))
        return handler

    return register


def translate(context: Context, instruction: Instruction) -> str:
    """The C++ statement of one instruction."""
    if instruction.base not in HANDLERS:
        raise SimulatorError(f"the instruction {instruction.base!r} is not simulated")
    handler, known = HANDLERS[instruction.base]
    unknown = set(instruction.modifiers) - known - _ANY_TYPE
    if unknown and "*" not in known:
        raise SimulatorError(f"the modifiers {', '.join(sorted(unknown))} are not simulated")
    context.instruction = instruction
    return handler(context, instruction)


def is_float(kind: str) -> bool:
    return kind in FLOATS
