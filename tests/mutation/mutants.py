"""The mutants of the .toml files beside: which line becomes which, and what should notice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomllib

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
AREAS = ("sweep", "triton", "csrc", "cuda")  # the cheap ones first


@dataclass(frozen=True)
class Mutant:
    id: str
    area: str
    file: str
    before: str  # a line without its indentation, which stands in the file once
    after: str
    tests: tuple[str, ...]  # arguments of pytest: those that should notice
    broad: tuple[str, ...]  # those of the area, where these do not
    needs: str = ""  # a macro that the compiler defines where the machine runs this code
    survives: str = ""  # why no test can notice

    def line(self, root: Path = ROOT) -> int:
        """The number of the line. Raises ValueError unless there is one."""
        lines = (root / self.file).read_text(encoding="utf-8").splitlines()
        at = [n for n, line in enumerate(lines, 1) if line.strip() == self.before]
        if len(at) != 1:
            raise ValueError(
                f"{self.id}: the line must stand in {self.file} once, got {len(at)} times: "
                f"{self.before!r}; correct tests/mutation/{self.area}.toml"
            )
        return at[0]

    @contextlib.contextmanager
    def planted(self, root: Path) -> Iterator[None]:
        """The line is changed in the project at `root`."""
        at, path = self.line(root) - 1, root / self.file
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        lines[at] = lines[at].replace(self.before, self.after)
        path.write_text("".join(lines), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(text, encoding="utf-8")


def read() -> list[Mutant]:
    """All of them, each of which can be planted."""
    mutants = [m for area in AREAS for m in _of_area(area)]
    ids = [m.id for m in mutants]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise ValueError(f"ids must differ, got twice: {', '.join(twice)}")
    for mutant in mutants:
        mutant.line()
    return mutants


def _of_area(area: str) -> list[Mutant]:
    found: dict[str, Any] = tomllib.loads((HERE / f"{area}.toml").read_text(encoding="utf-8"))
    broad = tuple(found["broad"])
    return [
        Mutant(**{**entry, "area": area, "tests": tuple(entry["tests"]), "broad": broad})
        for entry in found["mutant"]
    ]
