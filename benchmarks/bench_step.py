"""One training step (forward and backward) against its three bare products and the alternatives.

All providers run in one process, in turn, and the ratio is the median of the rounds' ratios.
Result files:
`python -m pytest benchmarks --benchmark-only --benchmark-json=benchmarks/results/NAME.json`
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from providers import Products, Step, eager, fused, gradients, reference

ROUNDS = 5


def check(step: Step) -> None:
    """The providers agree before anybody times them."""
    q, c = (t.detach().double().requires_grad_() for t in (step.queries, step.candidates))
    _, *expected = gradients(eager, Step(q, c, step.query_keys, step.candidate_keys))
    _, *actual = gradients(fused, step)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-5 * float(e.abs().max()))


def interleave(providers: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each provider in each round; one round more, not counted, goes first."""
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    for _ in range(rounds + 1):
        for name, run in providers.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}


def ratio(seconds: dict[str, list[float]], name: str, base: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


@pytest.mark.parametrize(
    ("n", "d", "alternatives"),
    [(8192, 768, True), (8192, 256, False), (4096, 768, False)],
    ids=["N8192-M8192-D768-L3-fp32", "N8192-M8192-D256-L3-fp32", "N4096-M4096-D768-L3-fp32"],
)
def bench_step(benchmark: Any, n: int, d: int, alternatives: bool) -> None:
    check(Step.make(515, 1003, d))
    step = Step.make(n, n, d)
    providers: dict[str, Callable[[], Any]] = {
        "products": Products(step),
        "fused": lambda: gradients(fused, step),
        "fused_no_grad": torch.no_grad()(lambda: fused(step)),
    }
    if alternatives:
        compiled = torch.compile(eager)
        providers["reference"] = lambda: gradients(reference, step)
        providers["eager"] = lambda: gradients(eager, step)
        providers["compiled"] = lambda: gradients(compiled, step)

    seconds: dict[str, list[float]] = {}

    def rounds() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            seconds.update(interleave(providers, ROUNDS))

    benchmark.pedantic(rounds, rounds=1, iterations=1)
    benchmark.extra_info["seconds"] = seconds
    benchmark.extra_info["flops_of_products"] = 3 * 2 * n * n * d
    for name in providers:
        benchmark.extra_info[f"{name}/products"] = ratio(seconds, name, "products")
        benchmark.extra_info[f"{name}/fused"] = ratio(seconds, name, "fused")
