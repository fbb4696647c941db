"""What the compiled kernels may cost, in budget.json; as a program this writes it anew.

cd tests && TRITON_INTERPRET=0 python -m compiled.budget [target ...]
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.errors import TritonError

from .compile_only import TARGETS, compile_only
from .configurations import configurations
from .facts import Facts, facts_of

__all__ = ["FILE", "REFRESH", "Measured", "measure", "pool", "read", "started"]

FILE = Path(__file__).parent / "budget.json"
REFRESH = "cd tests && TRITON_INTERPRET=0 python -m compiled.budget"
PROCESSES = 2


@dataclass
class Measured:
    kernels: dict[str, Facts] = field(default_factory=dict)  #: by configuration and specialisation
    failures: dict[str, str] = field(default_factory=dict)  #: what the compiler says, likewise


def measure(target: str) -> Measured:
    """All kernels of the configurations."""
    torch.set_num_threads(1)
    found = Measured()
    with compile_only(target) as compiled:
        for name, run in configurations(target):
            known = len(compiled)
            try:
                run()
            except TritonError as error:
                found.failures[name] = str(error)
            for kernel in compiled[known:]:
                key = f"{name}/{kernel.id}"
                while key in found.kernels:
                    key += "'"
                found.kernels[key] = facts_of(kernel)
    return found


def started(pool: ProcessPoolExecutor, targets: Iterable[str]) -> dict[str, Future[Measured]]:
    return {target: pool.submit(measure, target) for target in targets}


def pool() -> ProcessPoolExecutor:
    """Fresh processes: a fork has the threads of torch's OpenMP only in name."""
    return ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn"))


def read() -> dict[str, Any]:
    budget: dict[str, Any] = json.loads(FILE.read_text())
    return budget


def _write(budget: dict[str, Any]) -> None:
    """A line for each kernel, so that a change shows which."""
    targets = []
    for target, kernels in budget["targets"].items():
        lines = ",\n".join(
            f"   {json.dumps(key)}: {json.dumps(facts)}" for key, facts in sorted(kernels.items())
        )
        targets.append(f'  "{target}": {{\n{lines}\n  }}')
    text = ",\n".join(targets)
    FILE.write_text(
        f'{{\n "triton": {json.dumps(budget["triton"])},\n "targets": {{\n{text}\n }}\n}}\n'
    )


def main(targets: list[str]) -> None:
    if triton.knobs.runtime.interpret:
        raise SystemExit(f"TRITON_INTERPRET must be 0, or nothing is compiled: {REFRESH}")
    budget = read() if FILE.exists() else {}
    old = budget.get("targets", {})
    with pool() as workers:
        running = started(workers, targets or TARGETS)
        measured = {target: future.result() for target, future in running.items()}
    new = {t: {k: asdict(f) for k, f in m.kernels.items()} for t, m in measured.items()}
    entries = {t: new.get(t, old.get(t, {})) for t in TARGETS}
    _write({"triton": triton.__version__, "targets": entries})
    for target, m in measured.items():
        for name, message in m.failures.items():
            print(f"{name} on {target} does not compile: {message}")


if __name__ == "__main__":
    main(sys.argv[1:])
