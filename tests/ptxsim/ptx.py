"""Parses PTX into functions, variables and statements. Instructions keep their operands as text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .errors import SimulatorError
from .types import SIZES

_TYPE = r"\.([a-z]+\d*(?:x\d)?)"
_NAME = r"[\w$%]+"
_SPACE = re.compile(r"\s*")
_LABEL = re.compile(rf"({_NAME})\s*:(?!:)")
_LOCATION = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)([^\n]*)")
_INLINED_AT = re.compile(r"inlined_at\s+(\d+)\s+(\d+)\s+(\d+)")
_FILE = re.compile(r'\.file\s+(\d+)\s+"([^"]*)"[^\n]*')
_HEADER_LINE = re.compile(r"\.(version|target|address_size)\b[^\n]*")
_VARIABLE = re.compile(
    rf"(?:\.(?:visible|extern|weak|common)\s+)*\.(reg|param|local|shared|global|const)\s+"
    rf"(?:\.align\s+(\d+)\s+)?(?:\.v[24]\s+)?{_TYPE}\s+(.*)",
    re.DOTALL,
)
_POINTER = re.compile(r"\.ptr(\s+\.(?!align)\w+)?(\s+\.align\s+\d+)?\s*")
_FUNCTION = re.compile(
    rf"(?:\.(?:visible|extern|weak)\s+)*\.(entry|func)\s+(?:\.\w+\s+)*(?:\(([^)]*)\)\s*)?({_NAME})"
    r"\s*(?:\(([^)]*)\))?(.*)",
    re.DOTALL,
)
_MAX_THREADS = re.compile(r"\.(?:reqntid|maxntid)\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?")
_GUARDED = re.compile(rf"(?:@(!?)({_NAME})\s+)?([\w.:]+)\s*(.*)", re.DOTALL)
_IGNORED = (".pragma", ".branchtargets", ".callprototype", ".alias")


@dataclass(frozen=True)
class Variable:
    """`name` is a prefix with a count where PTX wrote `%r<10>`."""

    space: str
    name: str
    type: str
    align: int
    count: int | None
    initializer: str = ""
    numbered: bool = False

    @property
    def bytes(self) -> int:
        return SIZES[self.type] * (1 if self.count is None else self.count)


@dataclass(frozen=True)
class Declaration:
    line: int
    variables: tuple[Variable, ...]


@dataclass(frozen=True)
class Label:
    name: str


@dataclass(frozen=True)
class ScopeStart:
    pass


@dataclass(frozen=True)
class ScopeEnd:
    pass


@dataclass(frozen=True)
class Instruction:
    line: int
    location: str
    text: str
    opcode: str
    operands: tuple[str, ...]
    guard: str = ""
    negated: bool = False

    @property
    def base(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def modifiers(self) -> tuple[str, ...]:
        return tuple(self.opcode.split(".")[1:])

    @property
    def type(self) -> str:
        """The last modifier: for most instructions the type of all operands."""
        return self.opcode.split(".")[-1]

    def has(self, modifier: str) -> bool:
        return modifier in self.modifiers

    def one_of(self, *choices: str) -> str:
        """The one modifier among the choices."""
        found = [m for m in self.modifiers if m in choices]
        if len(found) != 1:
            raise SimulatorError(f"expected one of {', '.join(choices)}")
        return found[0]


Statement = Declaration | Label | ScopeStart | ScopeEnd | Instruction


@dataclass(frozen=True)
class Function:
    name: str
    is_kernel: bool
    parameters: tuple[Variable, ...]  # of a device function: its results first
    statements: tuple[Statement, ...]
    text: str
    max_threads: int


@dataclass
class Module:
    functions: list[Function] = field(default_factory=list)
    variables: list[Variable] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


def split_operands(text: str) -> tuple[str, ...]:
    """Splits at the commas that stand outside of brackets."""
    parts: list[str] = []
    depth = start = 0
    for i, character in enumerate(text):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    if text[start:].strip():
        parts.append(text[start:].strip())
    return tuple(parts)


def _without_comments(text: str) -> str:
    def blank(match: re.Match[str]) -> str:
        return match[0] if match[0].startswith('"') else "\n" * match[0].count("\n")

    return re.sub(r'"[^"\n]*"|/\*.*?\*/|//[^\n]*', blank, text, flags=re.DOTALL)


def _closing_brace(text: str, start: int) -> int:
    """The position of the brace that closes the one before `start`."""
    depth = 1
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.start()
    raise SimulatorError("the PTX ends inside a block")


def _variables(text: str) -> tuple[Variable, ...]:
    match = _VARIABLE.match(_POINTER.sub("", text))
    if match is None:
        raise SimulatorError(f"cannot parse the declaration {text!r}")
    space, align, kind, rest = match.groups()
    rest, _, initializer = rest.partition("=")
    variables = []
    for name in split_operands(rest):
        parts = re.fullmatch(rf"({_NAME})\s*(?:<(\d+)>|\[(\d*)\])?", name)
        if parts is None or kind not in SIZES:
            raise SimulatorError(f"cannot parse the declaration {text!r}")
        count = parts[2] or parts[3]
        if parts[3] == "":
            count = "0"  # .extern .shared: its size is the launch's
        variables.append(
            Variable(
                space,
                parts[1],
                kind,
                max(int(align or 1), SIZES[kind]),
                None if count is None else int(count),
                initializer.strip(),
                parts[2] is not None,
            )
        )
    return tuple(variables)


class _Locations:
    """Turns .loc into text; for inlined code the innermost line comes first, then its callers."""

    def __init__(self, files: dict[str, str]) -> None:
        self._files = files
        self._callers: dict[tuple[str, ...], tuple[str, ...]] = {}

    def describe(self, match: re.Match[str]) -> str:
        position = match.group(1, 2, 3)
        inlined = _INLINED_AT.search(match[4])
        if inlined is None:
            self._callers.pop(position, None)
        else:
            self._callers[position] = inlined.group(1, 2, 3)
        lines: list[str] = []
        seen: set[tuple[str, ...]] = set()
        while position not in seen:
            seen.add(position)
            lines.append(f"{self._files.get(position[0], '?')}:{position[1]}")
            if position not in self._callers:
                break
            position = self._callers[position]
        return ", inlined at ".join(dict.fromkeys(lines))


def _statements(body: str, first_line: int, locations: _Locations) -> Iterator[Statement]:
    position, line, counted, location = 0, first_line, 0, ""
    while (position := _end(_SPACE, body, position)) < len(body):
        line += body.count("\n", counted, position)
        counted = position
        if body[position] in "{}":
            yield ScopeStart() if body[position] == "{" else ScopeEnd()
            position += 1
        elif match := _LOCATION.match(body, position):
            location = locations.describe(match)
            position = match.end()
        elif match := _LABEL.match(body, position):
            yield Label(match[1])
            position = match.end()
        else:
            end = body.find(";", position)
            if end < 0:
                raise SimulatorError(f"PTX line {line}: no semicolon after {body[position:]!r}")
            text = " ".join(body[position:end].split())
            if text and not text.startswith(_IGNORED):
                yield _statement(text, line, location)
            position = end + 1


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return position if match is None else match.end()


def _statement(text: str, line: int, location: str) -> Statement:
    if text.startswith("."):
        return Declaration(line, _variables(text))
    match = _GUARDED.fullmatch(text)
    if match is None:
        raise SimulatorError(f"PTX line {line}: cannot parse {text!r}")
    negated, guard, opcode, operands = match.groups()
    return Instruction(
        line, location or "the PTX", text, opcode, split_operands(operands), guard or "",
        negated == "!",
    )  # fmt: skip


def _function(header: str, body: str, line: int, locations: _Locations) -> Function:
    match = _FUNCTION.match(header)
    if match is None:
        raise SimulatorError(f"PTX line {line}: cannot parse the function {header!r}")
    kind, results, name, parameters, attributes = match.groups()
    listed = [*split_operands(results or ""), *split_operands(parameters or "")]
    threads = _MAX_THREADS.search(attributes)
    max_threads = 0
    if threads is not None:
        max_threads = int(threads[1]) * int(threads[2] or 1) * int(threads[3] or 1)
    return Function(
        name,
        kind == "entry",
        tuple(v for text in listed for v in _variables(text)),
        tuple(_statements(body, line, locations)),
        body,
        max_threads,
    )


def parse(text: str) -> Module:
    """Parses a PTX module."""
    text = _without_comments(text)
    module = Module()
    for match in _FILE.finditer(text):
        module.files[match[1]] = match[2].split("/")[-1]
    locations = _Locations(module.files)
    position = 0
    while (position := _end(_SPACE, text, position)) < len(text):
        skipped = next(
            (m for p in (_FILE, _HEADER_LINE, _LOCATION) if (m := p.match(text, position))), None
        )
        if skipped is not None:
            position = skipped.end()
            continue
        brace, semicolon = text.find("{", position), text.find(";", position)
        header = text[position : brace if brace >= 0 else len(text)].strip()
        if header.startswith(".section"):
            position = _closing_brace(text, brace + 1) + 1
        elif brace >= 0 and (semicolon < 0 or brace < semicolon) and "=" not in header:
            end = _closing_brace(text, brace + 1)
            line = text.count("\n", 0, brace + 1) + 1
            module.functions.append(_function(header, text[brace + 1 : end], line, locations))
            position = end + 1
        elif semicolon >= 0:
            declaration = text[position:semicolon].strip()
            is_function = _FUNCTION.match(declaration) is not None
            if declaration and not is_function and not declaration.startswith(_IGNORED):
                module.variables.extend(_variables(declaration))
            position = semicolon + 1
        else:
            raise SimulatorError(f"cannot parse the PTX {text[position : position + 80]!r}")
    return module
