"""A figure over several seeds: how a result file holds it, and how a table shows it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "runs": list(values)}


def cell(figure: dict[str, Any]) -> str:
    """Percent, mean +- standard deviation."""
    mean = f"{100 * figure['mean']:.1f}"
    return mean if figure["std"] is None else f"{mean} +-{100 * figure['std']:.1f}"
