"""The machine header of every result file."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

import grainrank
from grainrank.cpu import instruction_sets


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next(
        (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "unknown"
    )


def machine_header() -> dict[str, Any]:
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "instruction_set": instruction_sets()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "load_average": os.getloadavg()[0],
        "grainrank": grainrank.__version__,
    }
