"""Instructions that the CPU passes may execute, in cpu_budget.json.

instruction_budget.py PROGRAM  compares, as `make native-test` does: counts are within the budget;
                               77 is returned where they are not to be compared
instruction_budget.py          builds the program and writes the budget anew

PROGRAM: instructions.cpp as CMake built it. Counts are those of valgrind, which knows no AVX-512.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_name("cpu_budget.json")
REFRESH = "python tests/native/instruction_budget.py"
MORE, LESS = 0.02, 0.1  # than the budget's, of each pass
SKIPPED = 77  # as CMakeLists.txt tells ctest

Counts = dict[str, dict[str, float]]  # of an instruction set and a pass, for each element


def read() -> dict[str, Any]:
    budget: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return budget


def _output(*command: str | Path, errors: bool = False) -> str:
    # Every function is looked up at the start, and so in the set-up that is taken off.
    environment = os.environ | {"LD_BIND_NOW": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}")
    return done.stderr if errors else done.stdout


def described(program: Path) -> dict[str, Any]:
    """What the program is, and which sets and passes it runs under valgrind."""
    found: dict[str, Any] = json.loads(_output("valgrind", "--quiet", "--tool=none", program))
    return found | {"machine": platform.machine()}


def _executed(program: Path, *arguments: str) -> int:
    callgrind = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
    said = _output(*callgrind, program, *arguments, errors=True)
    found = re.search(r"Collected : (\d+)", said)
    if found is None:
        raise SystemExit(f"valgrind says no count: {said}")
    return int(found[1])


def measured(program: Path, about: dict[str, Any]) -> Counts:
    forms: dict[str, int] = about["forms"]
    counts: Counts = {}
    with ThreadPoolExecutor(2) as pool:
        for of_set in about["sets"]:
            set_up = pool.submit(_executed, program, of_set)
            runs = {name: pool.submit(_executed, program, of_set, name) for name in forms}
            counts[of_set] = {
                name: round((run.result() - set_up.result()) / forms[name], 3)
                for name, run in runs.items()
            }
    return counts


def not_comparable(about: dict[str, Any], budget: dict[str, Any]) -> str | None:
    """Why the counts say nothing about the budget: another compiler makes other code."""
    for what in ("machine", "compiler", "flags"):
        if about[what] != budget[what]:
            return f"the budget is of {what} {budget[what]}, this is {about[what]}"
    missing = budget["instructions"].keys() - about["sets"]
    if missing:
        return f"valgrind does not run {', '.join(sorted(missing))} on this machine"
    return None


def exceeded(counts: Counts, budget: Counts) -> list[str]:
    """Where the counts are not within the budget, in words."""
    found = {f"{name} on {of_set}": n for of_set, of in counts.items() for name, n in of.items()}
    given = {f"{name} on {of_set}": n for of_set, of in budget.items() for name, n in of.items()}
    wrong = [f"{n} has no budget; to give it one: {REFRESH}" for n in found if n not in given]
    wrong += [
        f"{n} is in the budget alone; to remove it: {REFRESH}" for n in given if n not in found
    ]
    for name in (name for name in found if name in given):
        executes = f"{name} executes {found[name]} instructions for each element, "
        if found[name] > (1 + MORE) * given[name]:
            wrong.append(f"{executes}allowed {given[name]} + {MORE:.0%}; to allow them: {REFRESH}")
        if found[name] < (1 - LESS) * given[name]:
            wrong.append(
                f"{executes}the budget {given[name]}, over {LESS:.0%} more; to keep the gain: "
                f"{REFRESH}"
            )
    return wrong


def compare(program: Path) -> int:
    if shutil.which("valgrind") is None:
        print("skipped: valgrind is not on the PATH")
        return SKIPPED
    budget, about = read(), described(program)
    reason = not_comparable(about, budget)
    if reason is not None:
        print(f"skipped: {reason}")
        return SKIPPED
    wrong = exceeded(measured(program, about), budget["instructions"])
    print("\n".join(wrong) or "every pass executes as many instructions as its budget has")
    return 1 if wrong else 0


def build() -> Path:
    folder = ROOT / "build" / "native"
    _output("cmake", "-S", ROOT, "-B", folder, "-DGRAINRANK_NATIVE_TESTS=ON")
    _output("cmake", "--build", folder, "--target", "instructions", "--parallel", "2")
    return folder / "instructions"


def write() -> None:
    program = build()
    about = described(program)
    budget = {what: about[what] for what in ("compiler", "flags", "machine", "shape")}
    budget["instructions"] = measured(program, about)
    FILE.write_text(json.dumps(budget, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    if arguments:
        return compare(Path(arguments[0]))
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
