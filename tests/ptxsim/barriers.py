"""Takes the synchronisation out of a kernel, one instruction at a time, to see what is noticed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .errors import SimulatorError

# Not bar.red, whose result the code goes on with; nor bar.arrive, which only deadlocks.
_SYNCHRONISING = re.compile(
    r"(?:@!?[\w$%]+\s+)?(?<![\w.])"
    r"(?:(?:bar|barrier|barrier\.cta)(?:\.warp)?\.sync(?:\.aligned)?"
    r"|cp\.async\.wait_group|cp\.async\.wait_all"
    r"|wgmma\.(?:fence|wait_group)\.sync\.aligned"
    r"|fence\.proxy\.async(?:[.:]\w+)*)"
    r"(?![\w.])[^;{}]*;"
)


@dataclass(frozen=True)
class Deletion:
    """An instruction, and the PTX without it; its other lines keep their numbers."""

    line: int
    text: str
    ptx: str

    def __str__(self) -> str:
        return f"PTX line {self.line}: {self.text}"


@dataclass(frozen=True)
class Outcome:
    """How the lack of an instruction was noticed; not at all if `evidence` is empty."""

    deletion: Deletion
    evidence: str

    @property
    def found(self) -> bool:
        return self.evidence != ""


def deletions(ptx: str) -> list[Deletion]:
    """The PTX without one of its synchronising instructions, for each of them."""
    found = []
    for match in _SYNCHRONISING.finditer(ptx):
        start, end = match.span()
        if "//" in ptx[ptx.rfind("\n", 0, start) + 1 : start]:
            continue
        kept = "\n" * match[0].count("\n")
        line = ptx.count("\n", 0, start) + 1
        found.append(Deletion(line, " ".join(match[0].split()), ptx[:start] + kept + ptx[end:]))
    return found


def search(
    cases: Iterable[Deletion], run: Callable[[str, int], bool], seeds: Sequence[int]
) -> list[Outcome]:
    """Runs the cases with each seed until one tells.

    run(ptx, seed): whether the result is right; a SimulatorError tells as well.
    """
    return [Outcome(case, _evidence(case.ptx, run, seeds)) for case in cases]


def _evidence(ptx: str, run: Callable[[str, int], bool], seeds: Sequence[int]) -> str:
    for seed in seeds:
        try:
            if not run(ptx, seed):
                return f"seed {seed}: wrong result"
        except SimulatorError as error:
            return f"seed {seed}: {error}"
    return ""
