"""PTX to C++: one statement per instruction, one C++ function per PTX function."""

from __future__ import annotations

import re
from dataclasses import dataclass

from . import arithmetic, control, conversion, cooperation, matrix, memory  # noqa: F401
from .context import Context, identifier, translate
from .errors import SimulatorError
from .ptx import (
    Declaration,
    Function,
    Instruction,
    Label,
    Module,
    ScopeEnd,
    ScopeStart,
    Statement,
    Variable,
    parse,
)
from .registers import check_registers
from .types import CPP_TYPES, REGISTER_TYPES

_DYNAMIC_ALIGNMENT = 128
_WORD = re.compile(r"[\w$%]+")
_NUMBERED = re.compile(r"(?<![\w$%])([A-Za-z_$%][\w$%]*?)(\d+)\b")
_ENDS_STRETCH = frozenset({"bra", "call", "exit", "ret"})


@dataclass(frozen=True)
class ParameterPlace:
    name: str
    type: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class KernelLayout:
    """How a kernel is launched."""

    name: str
    parameters: tuple[ParameterPlace, ...]
    static_shared_bytes: int
    max_threads: int

    @property
    def parameter_bytes(self) -> int:
        return max((p.offset + p.bytes for p in self.parameters), default=0)

    @property
    def entry_point(self) -> str:
        return identifier("ptxsim_run_", self.name)

    @property
    def layout_table(self) -> str:
        return identifier("ptxsim_layout_", self.name)


@dataclass(frozen=True)
class Translation:
    source: str
    kernels: tuple[KernelLayout, ...]


def _round_up(offset: int, align: int) -> int:
    return (offset + align - 1) // align * align


def _places(parameters: tuple[Variable, ...]) -> tuple[ParameterPlace, ...]:
    places = []
    offset = 0
    for parameter in parameters:
        offset = _round_up(offset, parameter.align)
        places.append(ParameterPlace(parameter.name, parameter.type, offset, parameter.bytes))
        offset += parameter.bytes
    return tuple(places)


def _declared(function: Function) -> list[Variable]:
    return [v for s in function.statements if isinstance(s, Declaration) for v in s.variables]


def _shared_offsets(module: Module, function: Function) -> tuple[dict[str, int], int]:
    """Where the shared arrays that a function uses lie, and where the launch's own share begins.

    What device functions use comes first, at the same place for all kernels.
    """
    arrays = [*module.variables, *(v for f in module.functions for v in _declared(f))]
    arrays = [v for v in arrays if v.space == "shared"]
    called = {n for f in module.functions if not f.is_kernel for n in _WORD.findall(f.text)}
    if any(v.count == 0 and v.name in called for v in arrays):
        used = {v.name for v in arrays}
    else:
        used = called.union(_WORD.findall(function.text))
        arrays.sort(key=lambda v: v.name not in called)
    arrays = [v for v in arrays if v.name in used]
    offsets: dict[str, int] = {}
    end = 0
    for array in (v for v in arrays if v.count != 0):
        end = _round_up(end, array.align)
        offsets[array.name] = end
        end += array.bytes
    dynamic = [v for v in arrays if v.count == 0]
    if dynamic:
        end = _round_up(end, max(_DYNAMIC_ALIGNMENT, *(v.align for v in dynamic)))
        offsets.update((v.name, end) for v in dynamic)
    return offsets, end


class _Writer:
    """Writes one function."""

    def __init__(self, function: Function, context: Context) -> None:
        self._function = function
        self._context = context
        self._lines: list[str] = []
        self._uncounted = 0  # instructions since control could last come in or go elsewhere
        self._used: dict[str, list[int]] = {}
        for prefix, number in set(_NUMBERED.findall(function.text)):
            self._used.setdefault(prefix, []).append(int(number))

    def body(self) -> list[str]:
        for statement in self._function.statements:
            self._write(statement)
        self._count()
        return self._lines

    def _count(self) -> None:
        if self._uncounted > 0:
            self._lines.append(f"executed += {self._uncounted};")
        self._uncounted = 0

    def _write(self, statement: Statement) -> None:
        match statement:
            case Label(name):
                self._count()
                self._lines.append(f"{identifier('L', name)}:;")
            case ScopeStart():
                self._context.open_scope()
                self._lines.append("{")
            case ScopeEnd():
                self._context.close_scope()
                self._lines.append(";}")
            case Declaration(_, variables):
                for variable in variables:
                    self._declare(variable)
            case Instruction():
                self._uncounted += 1
                if statement.base in _ENDS_STRETCH:
                    self._count()
                self._lines.append(self._instruction(statement))

    def _instruction(self, instruction: Instruction) -> str:
        try:
            text = translate(self._context, instruction)
            if not instruction.guard:
                return text
            condition = self._context.predicate(instruction.guard)
        except (SimulatorError, KeyError, ValueError, IndexError) as error:
            raise SimulatorError(
                f"PTX line {instruction.line}, from {instruction.location}: cannot translate "
                f"{instruction.text!r}: {error}"
            ) from error
        return f"if ({'!' if instruction.negated else ''}{condition}) {{ {text} }}"

    def _declare(self, variable: Variable) -> None:
        if variable.space == "reg":
            self._context.declare_register(variable)
            names = [variable.name]
            if variable.numbered:
                names = [f"{variable.name}{i}" for i in sorted(self._used.get(variable.name, []))]
            if names:
                listed = ", ".join(identifier("r", name) for name in names)
                self._lines.append(f"{REGISTER_TYPES[variable.type]} {listed};")
        elif variable.space in ("param", "local"):
            name = identifier("p" if variable.space == "param" else "v", variable.name)
            align = max(16, variable.align) if variable.space == "param" else variable.align
            self._lines.append(f"alignas({align}) unsigned char {name}[{variable.bytes}];")
            if variable.space == "param":
                self._context.parameters[variable.name] = name
            else:
                self._context.declare_array(variable.name)
        elif variable.space != "shared":
            raise SimulatorError(f".{variable.space} variables inside a function are not simulated")


def _module_variable(variable: Variable) -> str:
    name, cpp = identifier("v", variable.name), CPP_TYPES[variable.type]
    value = variable.initializer
    if value and not value.startswith("{"):
        value = f"{{{value}}}"
    initializer = f" = {value}" if value else ""
    count = 1 if variable.count is None else variable.count
    return f"alignas({variable.align}) static {cpp} {name}[{count}]{initializer};"


def _signature(function: Function) -> str:
    parameters = ", ".join(f"unsigned char* {identifier('p', p.name)}" for p in function.parameters)
    return f"static void {identifier('f', function.name)}({parameters})"


def _define(function: Function, shared: dict[str, int], in_memory: set[str]) -> list[str]:
    context = Context(shared, set(in_memory))
    if function.is_kernel:
        places = _places(function.parameters)
        context.parameters = {p.name: f"parameters + {p.offset}" for p in places}
        context.parameter_bytes = max((p.offset + p.bytes for p in places), default=0)
        signature = f"static void {identifier('f', function.name)}()"
    else:
        context.parameters = {p.name: identifier("p", p.name) for p in function.parameters}
        signature = _signature(function)
    body = _Writer(function, context).body()
    sites = ", ".join(f'{{"{location}", {line}}}' for location, line in context.sites)
    table = [f"static const Site sites[] = {{{sites}}};"] if sites else []
    return [f"{signature} {{", *table, *body, "}"]


def _entry(kernel: Function, layout: KernelLayout, variables: list[Variable]) -> list[str]:
    table = "".join(
        f"{{(uint64_t)&{identifier('v', v.name)}, {v.bytes}, {int(v.space == 'global')}, "
        f'"{v.name}"}}, '
        for v in variables
    )
    numbers = [len(layout.parameters)]
    for place in layout.parameters:
        numbers += [place.offset, place.bytes]
    numbers += [layout.static_shared_bytes, layout.max_threads]
    return [
        f"PTXSIM_ENTRY int {layout.entry_point}(const LaunchSpec* spec) {{",
        f"const BufferSpec variables[] = {{{table}{{0, 0, 0, nullptr}}}};",
        f"const KernelSpec kernel = {{{identifier('f', kernel.name)}, "
        f"{layout.static_shared_bytes}u, {len(variables)}u, variables}};",
        "return launch(kernel, *spec);",
        "}",
        f"PTXSIM_ENTRY const int {layout.layout_table}[] = {{{', '.join(map(str, numbers))}}};",
    ]


def translate_module(ptx: str) -> Translation:
    """Translates a PTX module to C++ that includes runtime.h."""
    module = parse(ptx)
    variables = [v for v in module.variables if v.space in ("global", "const")]
    in_memory = {v.name for v in variables}
    lines = ['#include "runtime.h"', "using namespace ptxsim;"]
    lines += [_module_variable(v) for v in variables]
    lines += [f"{_signature(f)};" for f in module.functions if not f.is_kernel]
    layouts = []
    for function in module.functions:
        check_registers(function)
        shared, static_shared_bytes = _shared_offsets(module, function)
        lines += _define(function, shared, in_memory)
        if function.is_kernel:
            layout = KernelLayout(
                function.name,
                _places(function.parameters),
                static_shared_bytes,
                function.max_threads,
            )
            lines += _entry(function, layout, variables)
            layouts.append(layout)
    return Translation("\n".join(lines) + "\n", tuple(layouts))
