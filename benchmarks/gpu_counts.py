"""Bytes and flops of one training step on a GPU, counted from what is launched, without one.

`python benchmarks/gpu_counts.py` writes benchmarks/results/gpu-counts.json, for docs/gpu.md.

Each launch is taken to read every tensor that it is given once, and to write every result once:
tiles that are read again are taken to come from a cache. The floor is the time that the slower of
the two would take, launch by launch, at the rates of a data sheet: no step can be faster, and none
has been measured.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from providers import TEMPERATURE, Step, eager, gradients
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from grainrank import (
    GrainKeys,
    backends,
    gpu_passes,
    multi_level_ranking_loss,
    ops,
    triton_launch,
)
from grainrank.machine import machine_header

RESULT = Path(__file__).parent / "results" / "gpu-counts.json"
SIZES = [(n, d) for n in (8192, 32768, 65536) for d in (768, 4096)]
H100 = {"flops": 989e12, "bytes": 3.35e12}  # SXM, bfloat16 without sparsity; HBM3; per second
_TWICE = ("finish_rows", "mul_")  # read what they write over


@dataclass
class Count:
    flops: float = 0.0
    bytes: float = 0.0
    floor_s: float = 0.0
    launches: int = 0

    def add(self, flops: float, size: float) -> None:
        self.flops += flops
        self.bytes += size
        self.floor_s += max(flops / H100["flops"], size / H100["bytes"])
        self.launches += 1

    def as_dict(self) -> dict[str, float]:
        return {
            "tflop": self.flops / 1e12,
            "gb": self.bytes / 1e9,
            "floor_ms": self.floor_s * 1e3,
            "launches": self.launches,
        }


def _size(*values: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(values) if isinstance(t, Tensor))


class _Operators(TorchDispatchMode):
    """Counts PyTorch's operators, but views."""

    def __init__(self, count: Count) -> None:
        super().__init__()
        self._count = count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        allocates = name.startswith(("empty", "new_empty"))
        if func.namespace == "aten" and not func.is_view and not allocates:
            given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            over = any(result is x for x in given) and name not in _TWICE
            written = 0 if over else _size(result)
            flops = 0.0
            if name in ("mm", "addmm"):
                a, b = [x for x in args if isinstance(x, Tensor)][-2:]
                flops = 2.0 * a.shape[0] * a.shape[1] * b.shape[1]
            self._count.add(flops, _size(given) + written)
        return result


def _launched(count: Count) -> Any:
    def run(kernel: Any, grid: Any, *arguments: Any, **constants: Any) -> None:
        name, flops = kernel.fn.__name__, 0.0
        operands = arguments[0] if isinstance(arguments[0], tuple) else ()
        if constants.get("PRECISION"):
            queries, _, candidates, _, features = operands
            flops = 2.0 * queries.shape[0] * candidates.shape[0] * features
        size = _size(arguments) + (_size(arguments[0]) if name in _TWICE else 0)
        count.add(flops, size)

    return run


def _multiplied(count: Count) -> Any:
    """The vendor's products, whose operands may be narrower than the result."""

    def product(out: Tensor, a: Tensor, b: Tensor, add: Tensor | None = None) -> None:
        flops = 2.0 * a.shape[0] * a.shape[1] * b.shape[1]
        count.add(flops, _size(a, b, out) + (0 if add is None else _size(add)))

    return product


@contextlib.contextmanager
def counting() -> Iterator[Count]:
    """Inside, tensors of the `meta` device go through the Triton backend, and nothing runs."""
    count = Count()
    # Called as functions, not as operators: those have a form of their own for `meta` tensors.
    called = {name: getattr(ops, f"_{name}") for name in ("multi_level_nce", "level_tables")}
    with contextlib.ExitStack() as patches:
        for owner, name, value in (
            (triton_launch, "run", _launched(count)),
            (triton_launch, "_table", lambda: triton_launch.NVIDIA),
            (gpu_passes.GpuPasses, "product_", staticmethod(_multiplied(count))),
            (backends, "_triton_error", lambda device: None),
            (ops, "plain", lambda queries: torch.no_grad()),
            *((ops, name, function) for name, function in called.items()),
        ):
            patches.enter_context(mock.patch.object(owner, name, value))
        with _Operators(count):
            yield count


def _step(n: int, d: int) -> Step:
    def embeddings() -> Tensor:
        return torch.empty(n, d, dtype=torch.bfloat16, device="meta", requires_grad=True)

    keys = torch.empty(n, 3, dtype=torch.int64, device="meta")
    return Step(embeddings(), embeddings(), keys, keys.clone())


def count_ours(n: int, d: int, product: str) -> Count:
    step = _step(n, d)
    levels = GrainKeys(step.query_keys, step.candidate_keys)
    with counting() as count:
        gradients(
            lambda s: multi_level_ranking_loss(
                s.queries, s.candidates, levels, temperature=TEMPERATURE, backend="triton",
                product=product,
            ),
            step,
        )  # fmt: skip
    return count


def count_eager(n: int, d: int) -> Count:
    step = _step(n, d)
    with counting() as count:
        gradients(eager, step)
    return count


def count_all(n: int, d: int) -> dict[str, Any]:
    counts = {
        "fused": count_ours(n, d, "fused"),
        "vendor": count_ours(n, d, "vendor"),
        "eager": count_eager(n, d),
    }
    return {"N": n, "D": d, **{name: count.as_dict() for name, count in counts.items()}}


def main() -> None:
    result = {
        "what": "counted, not measured: one step of the multi-level loss, bfloat16, M = N, L = 3",
        "machine": machine_header(),
        "rates_of": {"H100 SXM data sheet": H100},
        "steps": [count_all(n, d) for n, d in SIZES],
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
