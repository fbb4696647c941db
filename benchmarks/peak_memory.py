"""Peak memory of a script's provider, in a process that does nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence


def measured_apart(script: str, flags: Sequence[str], name: str) -> int:
    """What `script FLAGS --memory-of NAME` prints, in a process of its own."""
    command = [sys.executable, script, *flags, "--memory-of", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
