"""What a step does inside its operators, from torch's profiler: products and allocations."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm")


@dataclass(frozen=True)
class Profile:
    multiplications: int  # in matrix products
    largest: int  # bytes of the largest allocation
    peak: int  # bytes allocated at once, over those before

    def products(self, n: int, m: int, d: int) -> float:
        """How many products of [N, D] with [D, M] it amounts to."""
        return self.multiplications / (n * m * d)


@contextlib.contextmanager
def products_of_ours() -> Iterator[list[int]]:
    """The multiplications of each product in the C++, which the profiler does not see."""
    native = importlib.import_module("grainrank._native")
    found: list[int] = []

    def counted(run: Callable[..., int]) -> Callable[..., int]:
        def product(*matrices: object, rows: int, columns: int, depth: int, **more: object) -> int:
            found.append(rows * columns * depth)
            return run(*matrices, rows=rows, columns=columns, depth=depth, **more)

        return product

    with pytest.MonkeyPatch.context() as patch:
        for name in ("product_f32", "product_bf16"):
            patch.setattr(native, name, counted(getattr(native, name)))
        yield found


def profiled(step: Callable[[], object]) -> Profile:
    with (
        products_of_ours() as ours,
        profile(
            activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=True
        ) as recorded,
    ):
        kept = step()
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    sizes = [
        e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()) if e.name() == "[memory]"
    ]
    live = peak = 0
    for size in sizes:
        live += size
        peak = max(peak, live)
    multiplications = sum(ours)
    for event in events:
        if event.name() in PRODUCTS:
            *_, a, b = [s for s in event.shapes()[: 3 if "add" in event.name() else 2] if s]
            multiplications += torch.Size([*a, b[-1]]).numel()
    del kept
    return Profile(multiplications, max(sizes, default=0), peak)
