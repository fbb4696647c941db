"""What the CUDA passes may cost, in cuda_budget.json; as a program this writes it anew.

cd tests && python -m compiled.cuda_budget [library]

library: a module or a static library of the passes, for what is read from its machine code; without
one, the installed grainrank._cuda.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .cuda_code import ARCHITECTURES, Code, built_module, code_of, nvcc_version, occupancy
from .cuda_forms import CAPABILITY, FORMS, SHAPE, Cost, measure

__all__ = ["FILE", "NOT_BUILT", "REFRESH", "occupancies", "read"]

FILE = Path(__file__).parent / "cuda_budget.json"
REFRESH = "pip install . && cd tests && python -m compiled.cuda_budget"
NOT_BUILT = "grainrank was installed without CUDA though nvcc is on the PATH; pip install . again"


def read() -> dict[str, Any]:
    budget: dict[str, Any] = json.loads(FILE.read_text())
    return budget


def occupancies(
    architecture: str, kernel: str, code: Code, costs: Mapping[str, Cost]
) -> dict[str, float]:
    """Of a kernel in each of the passes that launch it."""
    launched = {
        name: cost.kernels[kernel] for name, cost in costs.items() if kernel in cost.kernels
    }
    return {
        name: round(occupancy(architecture, code, of.threads, of.dynamic_shared), 4)
        for name, of in launched.items()
    }


def _lines(value: Any, depth: int, indent: int = 1) -> str:
    """JSON with a line for each entry down to `depth`, so that a change shows which."""
    if depth == 0:
        return json.dumps(value)
    space = " " * indent
    entries = (
        f"{space}{json.dumps(k)}: {_lines(v, depth - 1, indent + 1)}" for k, v in value.items()
    )
    return "{\n" + ",\n".join(entries) + f"\n{space[1:]}}}"


def _shape() -> str:
    return f"R = {SHAPE.N}, M = {SHAPE.M}, K = L = {SHAPE.K}, D = {SHAPE.D}, sm_{CAPABILITY}"


def main(arguments: list[str]) -> None:
    library = Path(arguments[0]) if arguments else built_module()
    if library is None:
        raise SystemExit(NOT_BUILT)
    codes = code_of(library)
    missing = ", ".join(name for name in ARCHITECTURES if name not in codes)
    if missing:
        raise SystemExit(f"{library} has no code for {missing}")
    costs = {name: measure(form) for name, form in FORMS.items()}
    code = {
        architecture: {
            name: asdict(of) | {"occupancy": occupancies(architecture, name, of, costs)}
            for name, of in sorted(codes[architecture].items())
        }
        for architecture in ARCHITECTURES
    }
    entries = (
        ("nvcc", json.dumps(nvcc_version())),
        ("shape", json.dumps(_shape())),
        ("passes", _lines({name: asdict(cost) for name, cost in costs.items()}, 2, 2)),
        ("code", _lines(code, 2, 2)),
    )
    text = ",\n".join(f' "{key}": {value}' for key, value in entries)
    FILE.write_text(f"{{\n{text}\n}}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
