"""The machine header of result files: what figures were made on."""

from __future__ import annotations

import datetime
import importlib
import os
import platform
from pathlib import Path
from typing import Any

import torch

from ._version import __version__


def machine_header() -> dict[str, Any]:
    """What the figures were made on."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "grainrank": __version__,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def instruction_sets() -> list[str]:
    """Of the native library on this machine, the best first; none where it did not load."""
    try:
        cpu = importlib.import_module("grainrank.cpu")
    except ImportError:
        return []
    return list(cpu.instruction_sets())


def gpus() -> list[dict[str, Any]]:
    """Name, bytes of memory and capability of each GPU that PyTorch sees."""
    if not torch.cuda.is_available():
        return []
    seen = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return [
        {"name": x.name, "memory": x.total_memory, "capability": f"{x.major}.{x.minor}"}
        for x in seen
    ]


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
