"""Changes single lines of csrc/, kernels/ and sweep.py, one at a time: do the tests notice?

python tests/mutation/check.py [--only ID...] [--out FILE] [--resume]

--only: these mutants of the .toml files beside. --resume: what FILE says was killed stays so.
Works on a copy of the project in build/mutation. A mutant is killed when a test fails or takes ten
times as long; a test counts when it passes without the mutant.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import native
import torch
from mutants import HERE, ROOT, Mutant, read

BUILD = ROOT / "build" / "mutation"
COPY = BUILD / "project"
COPIED = ("python", "csrc", "kernels", "tests", "benchmarks", "pyproject.toml", "CMakeLists.txt")
LONGEST = 45 * 60  # seconds by the clock: what waits for ever
# An editable installation finds the package before any folder does.
WITHOUT_EDITABLE = """import sys
sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith("_editable")]
"""


def copy() -> None:
    """The project as it is in the checkout: what is edited meanwhile is not seen."""
    shutil.rmtree(COPY, ignore_errors=True)
    for name in COPIED:
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        if source.is_dir():
            shutil.copytree(source, COPY / name, ignore=ignored)
        else:
            shutil.copy(source, COPY / name)
    (COPY / "python" / "grainrank" / "kernels").symlink_to(COPY / "kernels")
    (COPY / "python" / "sitecustomize.py").write_text(WITHOUT_EDITABLE, encoding="utf-8")
    native.build(COPY, BUILD / "objects")


def environment() -> dict[str, str]:
    own = {"PYTHONPATH": str(COPY / "python"), "PYTHONDONTWRITEBYTECODE": "1"}
    return {**os.environ, **own, "GRAINRANK_PTXSIM_CACHE": str(BUILD / "ptxsim")}


def check_copy() -> None:
    """Raises ValueError where the tests would see another package than the copy's."""
    ask = "import grainrank._native as n, grainrank.kernels as k; print(n.__file__, *k.__path__)"
    command = [sys.executable, "-c", ask]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    files = done.stdout.split()
    if len(files) != 2 or not all(Path(file).is_relative_to(COPY) for file in files):
        raise ValueError(f"the tests must see the package of {COPY}, got {files}\n{done.stderr}")


@dataclass
class Outcome:
    killed_by: str  # a test, or what ended the process; "": nothing
    seconds: float
    cpu: float  # seconds of all processes


def run_tests(tests: tuple[str, ...], most: float | None = None) -> Outcome:
    """To the first test that fails. most: seconds of a process's time, whatever the clock says."""

    def limit() -> None:
        if most is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (int(most), int(most) + 5))

    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(
            command, cwd=COPY, env=environment(), preexec_fn=limit, timeout=LONGEST,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        code, said = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        code, said = -24, ""
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Outcome(_killer(code, said), round(time.monotonic() - start, 1), round(cpu, 1))


def _killer(code: int, said: str) -> str:
    if code == 0:
        return ""
    if code in (-24, -9):
        return "out of time"
    if code < 0:
        return f"crash, signal {-code}"
    found = re.search(r"^(?:FAILED|ERROR) (\S+?(?:\[.*?\])?)(?: - |$)", said, re.MULTILINE)
    if code != 1 or found is None or "SimulatorError" in said:
        raise ValueError(f"pytest should have run, got exit status {code}:\n{said[-4000:]}")
    return found[1]


class Check:
    """The results so far, in a file that is written after each mutant."""

    def __init__(self, out: Path, resume: bool) -> None:
        self.out = out
        kept: dict[str, Any] = {}
        if resume and out.exists():
            kept = json.loads(out.read_text(encoding="utf-8"))
        self.unmutated: dict[str, dict[str, float]] = kept.get("unmutated", {})
        self.mutants = {m["id"]: m for m in kept.get("mutants", [])}

    def allowed(self, tests: tuple[str, ...]) -> float:
        """Seconds that a mutant may take. Raises ValueError unless the tests pass without one."""
        key = " ".join(tests)
        if key not in self.unmutated:
            native.build(COPY, BUILD / "objects")
            found = run_tests(tests)
            if found.killed_by:
                raise ValueError(f"{found.killed_by} must pass without a mutant")
            self.unmutated[key] = {"seconds": found.seconds, "cpu": found.cpu}
        return 10 * self.unmutated[key]["cpu"] + 60

    def has(self, mutant: Mutant) -> bool:
        known = self.mutants.get(mutant.id, {})
        same = (known.get("before"), known.get("after")) == (mutant.before, mutant.after)
        return same and known["outcome"] == "killed"

    def run(self, mutant: Mutant) -> None:
        about = {"id": mutant.id, "file": mutant.file, "line": mutant.line(COPY)}
        about |= {"before": mutant.before, "after": mutant.after}
        if mutant.needs and mutant.needs not in native.macros():
            self._record(about | {"outcome": "not run", "why": f"needs {mutant.needs}"})
            return
        seconds = cpu = 0.0
        for tests in (mutant.tests, mutant.broad):
            allowed = self.allowed(tests)
            with mutant.planted(COPY):
                native.build(COPY, BUILD / "objects")
                found = run_tests(tests, allowed)
            seconds, cpu = seconds + found.seconds, cpu + found.cpu
            if found.killed_by:
                break
        about |= {"outcome": "killed" if found.killed_by else "survived"}
        why = {"killed_by": found.killed_by} if found.killed_by else {"why": mutant.survives}
        self._record(about | why | {"seconds": round(seconds, 1), "cpu": round(cpu, 1)})

    def _record(self, about: dict[str, Any]) -> None:
        self.mutants[about["id"]] = about
        by = about.get("killed_by", about.get("why"))
        print(f"{about['id']}: {about['outcome']} {by}", flush=True)
        order = [m.id for m in read()]
        mutants = [self.mutants[i] for i in order if i in self.mutants]
        outcomes = [m["outcome"] for m in mutants]
        result = {
            "machine": {
                "instruction_set": native.instruction_set(), "python": platform.python_version(),
                "torch": torch.__version__,
            },
            "of": len(order),
            **{o: outcomes.count(o) for o in ("killed", "survived", "not run")},
            "mutants": mutants,
            "unmutated": self.unmutated,
        }  # fmt: skip
        text = json.dumps(result, indent=1, ensure_ascii=False)
        self.out.write_text(text + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="ID", default=[])
    parser.add_argument("--out", type=Path, default=HERE / "result.json")
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    mutants = read()
    unknown = sorted(set(given.only) - {m.id for m in mutants})
    if unknown:
        parser.error(f"--only takes ids of tests/mutation/*.toml, got {', '.join(unknown)}")
    check = Check(given.out, given.resume)
    copy()
    check_copy()
    for mutant in mutants:
        if (not given.only or mutant.id in given.only) and not check.has(mutant):
            check.run(mutant)
    survivors = [m for m in check.mutants.values() if m["outcome"] == "survived" and not m["why"]]
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
