"""Losses, or ranks, with one of the files of kernels/cuda/ replaced, in a process of its own.

A process loads a module but once.

cd tests && python -m compiled.planted_cuda FILE
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from compiled.simulated_cuda import module, simulated
from test_accuracy_losses import step
from torch import Tensor

from grainrank import DenseLevels
from grainrank.ranks import positive_ranks
from grainrank.testing import Shape, make_inputs

# Every kernel: column tables, prefixes, whose norms need the moments of the columns, softplus sums.
STEPS: list[tuple[str, str, dict[str, Any]]] = [
    ("info_nce", "symmetric", {"matryoshka_dims": (5, 12, 24)}),
    ("siglip", "rows", {}),
]
SHAPE = Shape(65, 257, 24, 3)


RANKS = Shape(3, 2100, 24, 3)  # two splits, and more positives than are staged at a time


def ranks_step(backend: Any) -> dict[str, Tensor]:
    """Exact ranks, smooth ones and their gradients."""
    inputs = make_inputs(RANKS, torch.float32)
    q, c = (x.requires_grad_() for x in inputs[:2])
    levels = torch.randint(-20, 4, RANKS[:2], generator=torch.Generator().manual_seed(0))
    source = DenseLevels(levels.clamp(min=-1).where(levels > -4, 0), 3)
    exact = positive_ranks(q, c, source, backend=backend).above
    smooth = positive_ranks(q, c, source, temperature=0.1, backend=backend).above
    d_q, d_c = torch.autograd.grad(smooth.log1p().mean(), (q, c))
    return {"exact": exact, "smooth": smooth.detach(), "d_queries": d_q, "d_candidates": d_c}


def main(replaced: Path) -> None:
    native = module(80, replaced)
    runs: list[Callable[..., dict[str, Tensor]]] = [ranks_step]
    if "rank" not in replaced.name:
        inputs = make_inputs(SHAPE, torch.float32)
        runs = [partial(step, name, way, inputs, **options) for name, way, options in STEPS]
    for run in runs:
        expected = run(backend="reference")
        with simulated(80, seed=1, native=native) as device:
            try:
                actual = run(backend="cuda")
            except RuntimeError as error:
                raise SystemExit(f"{error}: {device.message()}") from error
        for result, value in actual.items():
            torch.testing.assert_close(value, expected[result], rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
