"""The machine header goes into the JSON that pytest-benchmark writes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    from grainrank.cpu import instruction_sets
    from grainrank.machine import machine_header

    machine_info.clear()
    machine_info.update(
        machine_header(),
        instruction_set=instruction_sets()[0],
        load_average=os.getloadavg()[0],
    )


def pytest_benchmark_update_commit_info(config: Any, commit_info: dict[str, Any]) -> None:
    commit_info.clear()
