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

DRAWS = 8  # in float32: a scalar of the reference is sometimes luckily exact
#: One case for each path through the code; the other cases are other heads and sources.
PATHS = (
    "multi-level", "multi-level-symmetric", "multi-level-rows", "joint", "memory-symmetric",
    "siglip", "unique-softmax-symmetric", "hmlc", "margin-symmetric",
)  # fmt: skip
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def fits(name: str, transport: str) -> bool:
    return CASES[name].ring or transport == "gather"


def _runs(world: int) -> dict[str, list[Run]]:
    """Every case in float64, on 3 processes and unevenly; and by the rule of accuracy each path."""
    runs: dict[str, list[Run]] = {}
    uneven = world == 3

    def add(name: str, layout: str, transport: str, dtype: torch.dtype, what: str) -> None:
        backend = what if what in ("reference", "triton") else "auto"
        draws = 1 if dtype == torch.float64 else DRAWS
        runs[f"{name}-W{world}-{layout}-{transport}-{what}"] = [
            Run(name, layout, transport, seed, dtype, backend) for seed in range(draws)
        ]

    for transport in ("gather", "ring"):
        for layout in ("uneven", "empty") if uneven else ("even",):
            names = [name for name in (CASES if uneven else PATHS) if fits(name, transport)]
            for name in names:
                add(name, layout, transport, torch.float64, "fp64")
        for name in PATHS:
            add(name, "uneven" if uneven else "even", transport, torch.float32, "fp32")
    if uneven:
        for name in (*PATHS, "matryoshka-symmetric"):
            add(name, "empty", "gather", torch.float64, "reference")
        for name in ("multi-level", "multi-level-symmetric"):
            for short, dtype in HALF.items():
                add(name, "uneven", "gather", dtype, short)
            add(name, "uneven", "gather", torch.float32, "triton")
    return runs


RUNS = {key: (world, runs) for world in (2, 3, 4) for key, runs in _runs(world).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@functools.cache
def _results(world: int, folder: Path) -> dict[Run, list[losses.Results]] | Exception:
    """One launch for all runs, also where it fails."""
    runs = [run for runs in _runs(world).values() for run in runs]
    try:
        of_ranks = processes.run(world, losses.on_rank, folder / str(world), runs)
    except Exception as error:
        return error
    return dict(zip(runs, zip(*of_ranks, strict=True), strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("key", RUNS)
def test_equals_one_process(key: str, folder: Path) -> None:
    world, runs = RUNS[key]
    results = _results(world, folder)
    if isinstance(results, Exception):
        raise results
    draws: dict[str, list[Draw]] = {}
    for run in runs:
        actual = losses.together(run, world, list(results[run]))
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
