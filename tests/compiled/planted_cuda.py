"""Losses with one of the files of kernels/cuda/ replaced, in a process of its own.

A process loads a module but once.

cd tests && python -m compiled.planted_cuda FILE
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from compiled.simulated_cuda import module, simulated
from test_accuracy_losses import step

from grainrank.testing import Shape, make_inputs

# Every kernel: column tables, prefixes, whose norms need the moments of the columns, softplus sums.
STEPS: list[tuple[str, str, dict[str, Any]]] = [
    ("info_nce", "symmetric", {"matryoshka_dims": (5, 12, 24)}),
    ("siglip", "rows", {}),
]
SHAPE = Shape(65, 257, 24, 3)


def main(replaced: Path) -> None:
    native = module(80, replaced)
    for name, way, options in STEPS:
        inputs = make_inputs(SHAPE, torch.float32)
        expected = step(name, way, inputs, "reference", **options)
        with simulated(80, seed=1, native=native) as device:
            try:
                actual = step(name, way, inputs, "cuda", **options)
            except RuntimeError as error:
                raise SystemExit(f"{error}: {device.message()}") from error
        for result, value in actual.items():
            torch.testing.assert_close(value, expected[result], rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
