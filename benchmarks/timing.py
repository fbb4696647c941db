"""What result files hold of timings: seconds of each round, and ratios."""

from __future__ import annotations

import statistics
import warnings
from typing import Any

from grainrank.bench.timing import Providers, interleave, ratio

ROUNDS = 7


def summary(seconds: dict[str, list[float]], name: str, base: str) -> dict[str, Any]:
    """What a result file holds of a provider's times."""
    return {
        "seconds": seconds[name],
        "median_seconds": statistics.median(seconds[name]),
        "of_bare_products": ratio(seconds, name, base),
    }


def record(benchmark: Any, providers: Providers, bases: tuple[str, ...]) -> None:
    """Runs the rounds; the JSON gets their seconds, and each provider's ratio to each base."""
    seconds: dict[str, list[float]] = {}

    def rounds() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            seconds.update(interleave(providers, ROUNDS))

    benchmark.pedantic(rounds, rounds=1, iterations=1)
    benchmark.extra_info["seconds"] = seconds
    for name in providers:
        for base in bases:
            benchmark.extra_info[f"{name}/{base}"] = ratio(seconds, name, base)
