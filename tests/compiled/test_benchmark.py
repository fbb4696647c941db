"""`benchmarks/gpu.py` runs, on the simulator: its providers agree, and its results are whole."""

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

NVCC = shutil.which("nvcc") is not None


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("gpu")


@pytest.mark.parametrize("name", ["multi_level", "clip"])
def test_measure(name: str, gpu: Any) -> None:
    left_out = {"compiled"} if NVCC else {"compiled", "cuda"}
    providers = {k: v for k, v in gpu.BENCHMARKS[name].items() if k not in left_out}
    device = torch.device("cpu")
    with use(80, races=False), simulated(80) if NVCC else contextlib.nullcontext():
        gpu.check(providers, torch.bfloat16, device, n=66, m=66, d=40)
        result = gpu.measure(providers, 66, 40, torch.bfloat16, device, rounds=1)
    base = next(iter(providers))
    for kind in ("forward", "step"):
        assert set(result[f"{kind}/seconds"]) == set(providers)
        assert result[f"{kind}/{base}/{base}"] == 1.0
        assert all(result[f"{kind}/{provider}/{base}"] > 0 for provider in providers)
