"""What the compiled kernels may cost, in budget.json; as a program this writes it anew.

cd tests && TRITON_INTERPRET=0 python -m compiled.budget [target ...]
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import triton

from .compile_only import TARGETS, compile_only
from .configurations import configurations
from .facts import Facts, facts_of

__all__ = ["FILE", "REFRESH", "Kernels", "measure", "read", "started"]

FILE = Path(__file__).parent / "budget.json"
REFRESH = "cd tests && TRITON_INTERPRET=0 python -m compiled.budget"
PROCESSES = 2
Kernels = dict[str, Facts]


def measure(target: str) -> Kernels:
    """The facts of all kernels of the configurations, by configuration and specialisation."""
    torch.set_num_threads(1)
    kernels: Kernels = {}
    with compile_only(target) as compiled:
        for name, run in configurations(target):
            known = len(compiled)
            try:
                run()
            except Exception as error:
                error.add_note(f"{name} on {target}")
                raise
            for kernel in compiled[known:]:
                key = f"{name}/{kernel.id}"
                while key in kernels:
                    key += "'"
                kernels[key] = facts_of(kernel)
    return kernels


def started(pool: ProcessPoolExecutor, targets: Iterable[str]) -> dict[str, Future[Kernels]]:
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
        new = {t: {k: asdict(f) for k, f in r.result().items()} for t, r in running.items()}
    entries = {t: new.get(t, old.get(t, {})) for t in TARGETS}
    _write({"triton": triton.__version__, "targets": entries})


if __name__ == "__main__":
    main(sys.argv[1:])
