"""The losses of 2, 3 and 4 processes equal those of one, and so do their gradients."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from grainrank.testing import Draw, assert_accurate

from ranks import losses, processes
from ranks.batches import LAYOUTS
from ranks.cases import CASES

DRAWS = 8  # a scalar of the reference is sometimes luckily exact
#: Every case on 3 processes, unevenly; on 2 and 4, evenly, one for each path through the code.
PATHS = (
    "multi-level", "multi-level-symmetric", "multi-level-rows", "joint", "memory-symmetric",
    "siglip", "unique-softmax-symmetric", "hmlc", "margin-symmetric",
)  # fmt: skip


def _runs(world: int) -> dict[str, list[losses.Run]]:
    runs: dict[str, list[losses.Run]] = {}
    for name in CASES if world == 3 else PATHS:
        for layout in ("uneven", "empty") if world == 3 else ("even",):
            for transport in ("gather", "ring"):
                key = f"{name}-W{world}-{layout}-{transport}"
                runs[key] = [
                    (name, layout, transport, seed, torch.float32) for seed in range(DRAWS)
                ]
    for dtype, short in ((torch.bfloat16, "bf16"), (torch.float64, "fp64")):
        for name in ("multi-level", "multi-level-symmetric") if world == 3 else ():
            runs[f"{name}-W3-uneven-gather-{short}"] = [
                (name, "uneven", "gather", seed, dtype) for seed in range(DRAWS)
            ]
    return runs


RUNS = {key: (world, runs) for world in (2, 3, 4) for key, runs in _runs(world).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@functools.cache
def _results(world: int, folder: Path) -> dict[losses.Run, list[losses.Results]]:
    runs = [run for runs in _runs(world).values() for run in runs]
    of_ranks = processes.run(world, losses.on_rank, folder / str(world), runs)
    return dict(zip(runs, zip(*of_ranks, strict=True), strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("key", RUNS)
def test_equals_one_process(key: str, folder: Path) -> None:
    world, runs = RUNS[key]
    draws: dict[str, list[Draw]] = {}
    for run in runs:
        actual = losses.together(run, world, list(_results(world, folder)[run]))
        reference = losses.on_one_process(run, world, "reference", run[-1])
        truth = losses.on_one_process(run, world, "reference", torch.float64)
        assert actual.keys() == truth.keys()
        for name, value in actual.items():
            if run[-1] == torch.float64:
                assert_close = torch.testing.assert_close
                assert_close(value, truth[name], rtol=1e-10, atol=1e-12)
                continue
            draw = Draw(value, reference[name], truth[name])
            draws.setdefault(name, []).append(draw)
    for name, of_name in draws.items():
        assert_accurate(f"{key} {name}", *of_name)
