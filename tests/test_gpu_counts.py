"""docs/gpu.md shows the committed counts, and the counts are those of the code."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
ROOT = Path(__file__).parents[1]
COLUMNS = ("tflop", "gb", "floor_ms")
PROVIDERS = ("fused", "vendor", "eager")


@pytest.fixture
def counts(poisoned_memory: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    # Filling memory with NaN, as every test does, would be counted.
    for owner, names in ((torch, ("empty", "empty_like")), (torch.Tensor, ("new_empty",))):
        for name in names:
            monkeypatch.setattr(owner, name, getattr(owner, name).__wrapped__)
    return importlib.import_module("gpu_counts")


def committed() -> list[dict[str, Any]]:
    text = (ROOT / "benchmarks" / "results" / "gpu-counts.json").read_text(encoding="utf-8")
    steps: list[dict[str, Any]] = json.loads(text)["steps"]
    return steps


def test_the_document_shows_the_result_file() -> None:
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    rows = [
        [float(cell) for cell in line.strip("| ").split("|")]
        for line in text.splitlines()
        if line.startswith("| ") and line[2].isdigit()
    ]
    for row, step in zip(rows, committed(), strict=True):
        expected = [step[p][c] for p in PROVIDERS for c in COLUMNS]
        assert row[:2] == [step["N"], step["D"]]
        assert row[2:] == pytest.approx(expected, rel=5e-3)


def test_the_document_shows_the_budget_of_the_cuda_passes() -> None:
    text = (ROOT / "tests" / "compiled" / "cuda_budget.json").read_text(encoding="utf-8")
    passes = json.loads(text)["passes"]
    lines = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8").splitlines()
    found = 0
    for line in lines:
        name, *cells = (cell.strip() for cell in line.strip("| ").split("|"))
        if name not in passes:
            continue
        found += 1
        count = passes[name]["bytes"]
        written = count.get("gradient written", count.get("logits written", 0.0))
        instructions = sum(k["instructions"] for k in passes[name]["kernels"].values())
        expected = [count.get("logits read", 0.0), written, count["other read"]]
        expected += [count.get("other written", 0.0), instructions]
        assert [float(cell) for cell in cells] == pytest.approx(expected, abs=0.051, rel=0.01)
    assert found == 14


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_result_file_is_of_this_code(counts: Any, provider: str) -> None:
    step = committed()[0]
    count = counts.count_all(step["N"], step["D"])[provider]
    assert count == pytest.approx(step[provider])


def test_products_of_a_step(counts: Any) -> None:
    """Four products where the similarities are taken again, else three, as in the dense loss."""
    n, d = 4096, 128
    product = 2 * n * n * d
    assert counts.count_ours(n, d, "fused").flops == 4 * product
    assert counts.count_ours(n, d, "vendor").flops == 3 * product
    assert counts.count_eager(n, d).flops == 3 * product
