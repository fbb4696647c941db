"""Peak memory of a call over what its process held before; the process does nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def peak_of(run: Callable[[], Any]) -> int:
    """Bytes; run it on a small input before, so that libraries and their buffers are loaded."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def measured_apart(script: str, flags: Sequence[str], name: str) -> int:
    """What `script FLAGS --memory-of NAME` prints, in a process of its own."""
    command = [sys.executable, script, *flags, "--memory-of", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
