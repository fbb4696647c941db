"""The losses of 2, 3 and 4 processes equal those of one, and so do their gradients."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from ranks import losses, processes
from ranks.cases import CASES
from ranks.losses import Run

from grainrank.testing import Draw, assert_accurate

DRAWS = 8  # a scalar of the reference is sometimes luckily exact
#: Every case on 3 processes, unevenly; on 2 and 4, evenly, one for each path through the code.
PATHS = (
    "multi-level", "multi-level-symmetric", "multi-level-rows", "joint", "memory-symmetric",
    "siglip", "unique-softmax-symmetric", "hmlc", "margin-symmetric",
)  # fmt: skip


def _runs(world: int) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {}
    for name in CASES if world == 3 else PATHS:
        for layout in ("uneven", "empty") if world == 3 else ("even",):
            for transport in ("gather", "ring"):
                key = f"{name}-W{world}-{layout}-{transport}"
                runs[key] = [Run(name, layout, transport, seed) for seed in range(DRAWS)]
    if world != 3:
        return runs
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
    for name in ("multi-level", "multi-level-symmetric"):
        for short, dtype in dtypes.items():
            runs[f"{name}-W3-uneven-gather-{short}"] = [
                Run(name, "uneven", "gather", seed, dtype) for seed in range(DRAWS)
            ]
    for name in (*PATHS, "matryoshka-symmetric"):
        runs[f"{name}-W3-empty-gather-reference"] = [
            Run(name, "empty", "gather", seed, backend="reference") for seed in range(DRAWS)
        ]
    for name in ("multi-level", "siglip"):
        runs[f"{name}-W3-uneven-gather-triton"] = [
            Run(name, "uneven", "gather", seed, backend="triton") for seed in range(DRAWS)
        ]
    return runs


RUNS = {key: (world, runs) for world in (2, 3, 4) for key, runs in _runs(world).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@functools.cache
def _results(world: int, folder: Path) -> dict[Run, list[losses.Results]]:
    runs = [run for runs in _runs(world).values() for run in runs]
    of_ranks = processes.run(world, losses.on_rank, folder / str(world), runs)
    return dict(zip(runs, zip(*of_ranks, strict=True), strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("key", RUNS)
def test_equals_one_process(key: str, folder: Path) -> None:
    world, runs = RUNS[key]
    draws: dict[str, list[Draw]] = {}
    for run in runs:
        actual = losses.together(run, world, list(_results(world, folder)[run]))
        reference = losses.on_one_process(run, world, "reference", run.dtype)
        truth = losses.on_one_process(run, world, "reference", torch.float64)
        assert actual.keys() == truth.keys()
        for name, value in actual.items():
            if run.dtype == torch.float64:
                torch.testing.assert_close(value, truth[name], rtol=1e-10, atol=1e-12)
                continue
            draw = Draw(value, reference[name], truth[name])
            draws.setdefault(name, []).append(draw)
    for name, of_name in draws.items():
        assert_accurate(f"{key} {name}", *of_name)
