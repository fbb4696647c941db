"""A second's worth of evidence that the backends that `auto` picks compute what they should."""

from __future__ import annotations

import time
from typing import Any

import torch

from ..bench.losses import ours
from ..bench.verify import Setting, inaccuracies

_LOSS = "multi_level"


def self_check(device_type: str, backend: str) -> dict[str, Any]:
    """Loss and gradients in float32 against the reference in float64, by `grainrank.testing`.

    `verdict`: ok, WRONG, or failed where it raises an error.
    """
    start = time.monotonic()
    setting = Setting(torch.float32, torch.device(device_type))
    reference = ours(_LOSS, "reference")
    try:
        wrong = inaccuracies(ours(_LOSS, backend), reference, reference, setting)
        verdict = "WRONG" if wrong else "ok"
    except Exception as error:  # whatever it is belongs in the issue
        wrong = [f"{type(error).__name__}: {' '.join(str(error).split())}"]
        verdict = "failed"
    return {
        "device": device_type,
        "backend": backend,
        "verdict": verdict,
        "explanation": "; ".join(wrong),
        "seconds": round(time.monotonic() - start, 1),
    }
