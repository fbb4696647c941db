"""Runs the PTX that a compiler really made on the CPU, and checks every access while it does."""

from __future__ import annotations

from .errors import SimulatorError
from .kernel import Buffer, Kernel, Options

__all__ = ["Buffer", "Kernel", "Options", "SimulatorError"]
