"""Peak memory of one step over inputs and gradients, each measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

# VmHWM is the high-water mark; writing 5 to clear_refs sets it back to what is resident.
CHILD = """
import json, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import torch
from providers import Step, {provider} as provider, gradients

def status(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024

gradients(provider, Step.make(512, 512, {d}))  # libraries and their buffers are loaded
step = Step.make({n}, {n}, {d})
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
gradients(provider, step)
inputs = sum(t.numel() * t.element_size() for t in (step.queries, step.candidates))
print(json.dumps(dict(rise=status("VmHWM") - before, gradients=inputs)))
"""


@pytest.mark.parametrize(
    ("provider", "n", "d"),
    [("fused", 32768, 256), ("fused", 8192, 768), ("eager", 8192, 768)],
    ids=["fused-N32768-D256", "fused-N8192-D768", "eager-N8192-D768"],
)
def bench_peak_memory(benchmark: Any, provider: str, n: int, d: int) -> None:
    code = CHILD.format(here=str(HERE), provider=provider, n=n, d=d)

    def run() -> dict[str, int]:
        result = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        return dict(json.loads(result.stdout))

    peak = benchmark.pedantic(run, rounds=1, iterations=1)
    mebibyte = 2**20
    benchmark.extra_info["rise_mib"] = peak["rise"] / mebibyte
    benchmark.extra_info["gradients_mib"] = peak["gradients"] / mebibyte
    benchmark.extra_info["over_inputs_and_gradients_mib"] = (
        peak["rise"] - peak["gradients"]
    ) / mebibyte
