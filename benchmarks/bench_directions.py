"""The symmetric loss against its four bare products, and all prefixes against the longest one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from providers import (
    Step,
    eager,
    eager_matryoshka,
    fused,
    gradients,
    make,
    matryoshka,
    matryoshka_by_calls,
    products,
    symmetric,
)
from timing import record
from torch import Tensor

N, D = 4096, 768


def agree(ours: Callable[[Step], Tensor], theirs: Callable[[Step], Tensor]) -> None:
    """Checked before anybody times them."""
    step = make(515, 1003, D)
    exact = make(515, 1003, D, torch.float64)
    for a, e in zip(gradients(ours, step), gradients(theirs, exact), strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-5 * float(e.abs().max()))


def both_directions(step: Step) -> Tensor:
    """The eager loss twice."""
    q, c, query_keys, candidate_keys = step
    return (eager(step) + eager(Step(c, q, candidate_keys, query_keys))) / 2


def bench_symmetric(benchmark: Any) -> None:
    agree(symmetric, both_directions)
    step = make(N, N, D)
    providers = {
        "products": products(step, similarities=2),
        "symmetric": lambda: gradients(symmetric, step),
        "eager": lambda: gradients(both_directions, step),
    }
    record(benchmark, providers, ("products",))


def bench_matryoshka(benchmark: Any) -> None:
    agree(matryoshka, matryoshka_by_calls)
    step = make(N, N, D)
    providers = {
        "longest": lambda: gradients(fused, step),
        "matryoshka": lambda: gradients(matryoshka, step),
        "separate_calls": lambda: gradients(matryoshka_by_calls, step),
        "eager_separate_calls": lambda: gradients(eager_matryoshka, step),
    }
    record(benchmark, providers, ("longest",))
