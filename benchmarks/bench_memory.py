"""Peak memory of one step over inputs and gradients, each measured in a process of its own."""

from __future__ import annotations

from typing import Any

import pytest
from providers import peak_of_provider

from grainrank.bench.memory import peak_apart

MEBIBYTE = 2**20


@pytest.mark.parametrize(
    ("provider", "n", "d"),
    [("fused", 32768, 256), ("fused", 8192, 768), ("eager", 8192, 768)],
    ids=["fused-N32768-D256", "fused-N8192-D768", "eager-N8192-D768"],
)
def bench_peak_memory(benchmark: Any, provider: str, n: int, d: int) -> None:
    rise = benchmark.pedantic(
        peak_apart, (peak_of_provider, provider, n, d), rounds=1, iterations=1
    )
    gradients = 2 * n * d * 4
    benchmark.extra_info["rise_mib"] = rise / MEBIBYTE
    benchmark.extra_info["gradients_mib"] = gradients / MEBIBYTE
    benchmark.extra_info["over_inputs_and_gradients_mib"] = (rise - gradients) / MEBIBYTE
