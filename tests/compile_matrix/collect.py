"""Compiles the configurations and prints what was measured as JSON, or makes it the budget.

    cd tests && TRITON_INTERPRET=0 python -m compile_matrix.collect [--budget] [target ...]
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton

from . import budget
from .driver import TARGETS, compile_only
from .facts import Facts, facts_of

__all__ = ["Collected", "load"]

PROCESSES = 2
CONFIGURATIONS = "compile_matrix.configurations"


@dataclass(frozen=True)
class Collected:
    """Of one target."""

    kernels: dict[str, Facts]  #: by "configuration/kernel"
    errors: dict[str, str]  #: configurations that did not compile, and why
    seconds: float


def collect(target: str, source: str) -> Collected:
    """`source`: the module whose `configurations` are run."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    kernels: dict[str, Facts] = {}
    errors: dict[str, str] = {}
    with compile_only(target) as compiled:
        for configuration in importlib.import_module(source).configurations(target):
            known = len(compiled)
            try:
                configuration.run()
            except triton.TritonError as error:
                errors[configuration.name] = _reason(error)
            for kernel in compiled[known:]:
                key = f"{configuration.name}/{kernel.name}"
                before = sum(other.split("#")[0] == key for other in kernels)
                kernels[f"{key}#{before + 1}" if before else key] = facts_of(kernel)
    return Collected(kernels, errors, time.perf_counter() - start)


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().split("\n")[-1]


def load(text: str) -> dict[str, Collected]:
    """What the program printed, by target."""
    return {
        target: Collected(
            {key: Facts(**facts) for key, facts in c["kernels"].items()}, c["errors"], c["seconds"]
        )
        for target, c in json.loads(text).items()
    }


def _all(targets: Sequence[str], source: str) -> Iterator[tuple[str, Collected]]:
    # Fresh processes: a fork has the threads of torch's OpenMP only in name.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(PROCESSES, len(targets)), context) as pool:
        running = {target: pool.submit(collect, target, source) for target in targets}
        for target, future in running.items():
            yield target, future.result()


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="target", help="all without")
    parser.add_argument("--budget", action="store_true", help="write budget.json, print nothing")
    parser.add_argument("--configurations", default=CONFIGURATIONS, metavar="module")
    options = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        raise SystemExit("TRITON_INTERPRET must be 0, or nothing is compiled")
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"targets are {', '.join(TARGETS)}, got {', '.join(sorted(unknown))}")
    collected: dict[str, Any] = {}
    for target, of_target in _all(options.targets or list(TARGETS), options.configurations):
        collected[target] = of_target
        print(f"{target}: {len(of_target.kernels)} kernels, {of_target.seconds:.0f} s",
              file=sys.stderr)  # fmt: skip
    if options.budget:
        budget.write({target: c.kernels for target, c in collected.items()})
    else:
        print(json.dumps({target: asdict(c) for target, c in collected.items()}))


if __name__ == "__main__":
    main(sys.argv[1:])
