"""Registers that wgmma uses while the thread goes on: looked for in the code, before it runs.

Results are computed at once, so a launch cannot see that they were read too early.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .context import elements
from .errors import SimulatorError
from .ptx import Function, Instruction, Label

_NAME = re.compile(r"[\w$%]+")
_WITHOUT_RESULT = ("st", "red", "bar", "barrier", "bra", "fence", "cp", "stmatrix", "call")


@dataclass
class _State:
    """What may be so on some path to here. A wgmma is known by its line."""

    # Of a register: groups committed since the wgmma that uses it, the least of all paths.
    results: dict[str, tuple[int, int]] = field(default_factory=dict)
    inputs: dict[str, tuple[int, int]] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)  # the line, with no fence since
    fenced: bool = False

    def copy(self) -> _State:
        return _State(dict(self.results), dict(self.inputs), dict(self.written), self.fenced)

    def join(self, other: _State) -> bool:
        """Takes the other path in; returns whether anything is new."""
        before = (len(self.written), self.fenced, dict(self.results), dict(self.inputs))
        for mine, its in ((self.results, other.results), (self.inputs, other.inputs)):
            for name, use in its.items():
                mine[name] = min(use, mine.get(name, use))
        for name, line in other.written.items():
            self.written.setdefault(name, line)
        self.fenced &= other.fenced
        return before != (len(self.written), self.fenced, self.results, self.inputs)


def _is_wgmma(statement: object, form: str) -> bool:
    return (
        isinstance(statement, Instruction)
        and statement.base == "wgmma"
        and form in statement.modifiers
    )


def _names(operands: tuple[str, ...]) -> set[str]:
    return {name for operand in operands for name in _NAME.findall(operand)}


class _Checker:
    def __init__(self, function: Function) -> None:
        self._code = [s for s in function.statements if isinstance(s, Instruction | Label)]
        self._labels = {s.name: i for i, s in enumerate(self._code) if isinstance(s, Label)}
        products = [s for s in self._code if _is_wgmma(s, "mma_async")]
        self._watched = _names(tuple(x for p in products for x in self._registers(p)))

    def _registers(self, product: Instruction | Label) -> tuple[str, ...]:
        """The accumulators, and the left operand where it is in registers."""
        assert isinstance(product, Instruction)
        return tuple(x for x in product.operands[:2] if x.startswith("{"))

    def check(self) -> None:
        states = {0: _State()}
        work = [0]
        while work:
            start = work.pop()
            for target, state in self._run(start, states[start].copy()):
                if target not in states:
                    states[target] = state.copy()
                elif not states[target].join(state):
                    continue
                work.append(target)

    def _run(self, start: int, state: _State) -> list[tuple[int, _State]]:
        """From a label to the next; returns where it goes on, in which state."""
        found: list[tuple[int, _State]] = []
        for i in range(start, len(self._code)):
            statement = self._code[i]
            if isinstance(statement, Label):
                if i > start:
                    return [*found, (i, state)]
                continue
            self._step(statement, state)
            if statement.base == "bra":
                found.append((self._labels[statement.operands[0]], state.copy()))
            if statement.base in ("bra", "ret", "exit", "trap") and not statement.guard:
                return found
        return found

    def _step(self, code: Instruction, state: _State) -> None:
        if code.base == "wgmma":
            self._wgmma(code, state)
            return
        without = code.base in _WITHOUT_RESULT
        writes = set() if without else _names(code.operands[:1]) & self._watched
        reads = _names(code.operands if without else code.operands[1:]) & self._watched
        for name in sorted(reads & state.results.keys()):
            self._fail(code, f"{name} is read", state.results[name], "writes")
        for name in sorted(writes & state.results.keys()):
            self._fail(code, f"{name} is overwritten", state.results[name], "writes")
        for name in sorted(writes & state.inputs.keys()):
            self._fail(code, f"{name} is overwritten", state.inputs[name], "reads")
        state.written.update(dict.fromkeys(writes, code.line))

    def _fail(self, code: Instruction, what: str, use: tuple[int, int], verb: str) -> None:
        raise SimulatorError(
            f"{what} while the wgmma of PTX line {use[1]} still {verb} it: no wgmma.wait_group, "
            f"at {code.location} (PTX line {code.line})"
        )

    def _wgmma(self, code: Instruction, state: _State) -> None:
        if "fence" in code.modifiers:
            state.written.clear()
            state.fenced = True
        elif "commit_group" in code.modifiers:
            for uses in (state.results, state.inputs):
                uses.update({name: (min(n + 1, 9), line) for name, (n, line) in uses.items()})
        elif "wait_group" in code.modifiers:
            pending = int(code.operands[0], 0)
            for uses in (state.results, state.inputs):
                for name in [x for x, (committed, _) in uses.items() if committed > pending]:
                    del uses[name]
        else:
            self._product(code, state)

    def _product(self, code: Instruction, state: _State) -> None:
        results, inputs = (elements(x) if x.startswith("{") else () for x in code.operands[:2])
        at = f"at {code.location} (PTX line {code.line})"
        if not state.fenced:
            raise SimulatorError(f"wgmma with no wgmma.fence before it, {at}")
        for name in (*results, *inputs):
            if name in state.written:
                raise SimulatorError(
                    f"wgmma uses {name}, written at PTX line {state.written[name]} with no "
                    f"wgmma.fence since, {at}"
                )
        for name in inputs:
            if name in state.results:
                self._fail(code, f"{name} is read", state.results[name], "writes")
        state.results.update(dict.fromkeys(results, (0, code.line)))
        state.inputs.update(dict.fromkeys(inputs, (0, code.line)))


def check_registers(function: Function) -> None:
    """Raises SimulatorError where code and a wgmma may use a register at once, or with no fence."""
    if "wgmma.mma_async" in function.text:
        _Checker(function).check()
