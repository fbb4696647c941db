"""What `benchmarks/gpu.py` measures runs on the simulator: its providers agree and are timed."""

from __future__ import annotations

import contextlib
import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled.simulated_cuda import simulated
from ptxsim.driver import use

from grainrank.bench.verify import Setting
from grainrank.testing import Shape

NVCC = shutil.which("nvcc") is not None
SHAPE = Shape(66, 66, 40)


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    module = importlib.import_module("suite")
    monkeypatch.setattr(module, "can_measure", lambda: False)  # peaks are of other processes
    monkeypatch.setattr(module, "DRAWS", 1)
    return module


@pytest.mark.parametrize("loss", ["multi_level", "clip"])
def test_measure(loss: str, suite: Any) -> None:
    case = suite.Case(loss, Setting(torch.bfloat16, torch.device("cpu")), "triton")
    names = ["grainrank_fused", "grainrank_vendor", "dense"]
    with use(80, races=False), simulated(80) if NVCC else contextlib.nullcontext():
        names += ["grainrank_cuda"] if NVCC else []
        assert suite.check(case, names, SHAPE) == {}
        measured = suite.Suite(case, names, [suite.STEP], suite.Limits(None, 60.0, 1))
        providers = measured.measure(SHAPE)["providers"]
    assert set(providers) == {*names, "products"}
    for found in providers.values():
        assert found["step"]["of_products"] > 0
