"""Timings as ratios: providers in one process, in turn, medians over the rounds."""

from __future__ import annotations

import random
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

ROUNDS = 7
Providers = dict[str, Callable[[], Any]]


def interleave(providers: Providers, rounds: int) -> dict[str, list[float]]:
    """Seconds of each provider in each round; one round more, not counted, goes first.

    Each round has its own order: what ran before leaves caches and memory behind.
    """
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    order = list(providers.items())
    shuffle = random.Random(0).shuffle
    for _ in range(rounds + 1):
        shuffle(order)
        for name, run in order:
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}


def ratio(seconds: dict[str, list[float]], name: str, base: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


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
