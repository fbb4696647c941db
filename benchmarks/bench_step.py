"""One training step (forward and backward) against its three bare products and the alternatives.

Result files:
`python -m pytest benchmarks --benchmark-only --benchmark-json=benchmarks/results/NAME.json`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from providers import Step, eager, fused, gradients, make, products, reference
from timing import record


def check(step: Step) -> None:
    """The providers agree before anybody times them."""
    q, c = (t.detach().double().requires_grad_() for t in (step.queries, step.candidates))
    _, *expected = gradients(eager, step._replace(queries=q, candidates=c))
    _, *actual = gradients(fused, step)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-5 * float(e.abs().max()))


@pytest.mark.parametrize(
    ("n", "d", "alternatives"),
    [(8192, 768, True), (8192, 256, False), (4096, 768, False)],
    ids=["N8192-M8192-D768-L3-fp32", "N8192-M8192-D256-L3-fp32", "N4096-M4096-D768-L3-fp32"],
)
def bench_step(benchmark: Any, n: int, d: int, alternatives: bool) -> None:
    check(make(515, 1003, d))
    step = make(n, n, d)
    providers: dict[str, Callable[[], Any]] = {
        "products": products(step),
        "fused": lambda: gradients(fused, step),
        "fused_no_grad": torch.no_grad()(lambda: fused(step)),
    }
    if alternatives:
        compiled = torch.compile(eager)
        providers["reference"] = lambda: gradients(reference, step)
        providers["eager"] = lambda: gradients(eager, step)
        providers["compiled"] = lambda: gradients(compiled, step)

    benchmark.extra_info["flops_of_products"] = 3 * 2 * n * n * d
    record(benchmark, providers, ("products", "fused"))
