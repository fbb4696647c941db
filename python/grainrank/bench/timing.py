"""Timings as ratios: providers in one process, in turn, medians over the rounds."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Providers = dict[str, Callable[[], Any]]


def wall_seconds(run: Callable[[], Any]) -> float:
    """Seconds of a call on the CPU."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def gpu_seconds(run: Callable[[], Any]) -> float:
    """Seconds that a call keeps the GPU, between two events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000


def interleave(
    providers: Providers,
    rounds: int,
    seconds_of: Callable[[Callable[[], Any]], float] = wall_seconds,
) -> dict[str, list[float]]:
    """Seconds of each provider in each round; one round more, not counted, goes first.

    Each round has its own order: what ran before leaves caches and memory behind.
    """
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    order = list(providers.items())
    shuffle = random.Random(0).shuffle
    for _ in range(rounds + 1):
        shuffle(order)
        for name, run in order:
            seconds[name].append(seconds_of(run))
    return {name: times[1:] for name, times in seconds.items()}


def ratio(seconds: dict[str, list[float]], name: str, base: str) -> float:
    """Median over the rounds of `name`'s seconds / those of `base`."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))
