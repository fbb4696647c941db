"""The one exception of the simulator."""

from __future__ import annotations


class SimulatorError(RuntimeError):
    """What went wrong, where (the source line, the PTX line, the thread) and with which buffer."""
