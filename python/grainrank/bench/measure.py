"""Time and peak memory of the providers on one shape."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..testing import Inputs, Shape, make_inputs
from .losses import SCALE, Loss, dense, ours
from .memory import (
    OUT_OF_MEMORY,
    can_measure,
    free_bytes,
    give_back_freed,
    peak_apart,
    peak_of,
    peak_on_gpu,
)
from .timing import gpu_seconds, interleave, ratio, wall_seconds
from .verify import Setting, disagreements, inaccuracies, on_device, scale_of

OURS, DENSE, COMPILED, PRODUCTS = "grainrank", "dense", "compiled", "products"
LABELS = {
    OURS: "grainrank",
    DENSE: "dense PyTorch",
    COMPILED: "compiled PyTorch",
    PRODUCTS: "bare products",
}
# N x M matrices of float32 that a dense step was seen to hold at once; in multi_level more for
# each level.
_MATRICES, _MATRICES_OF_LEVEL = 9, 3


class Plan(NamedTuple):
    """What is measured, on which backend of ours."""

    loss: str
    backend: str
    setting: Setting
    compiled: bool = False

    def providers(self) -> list[str]:
        return [OURS, DENSE, *([COMPILED] if self.compiled else []), PRODUCTS]

    def loss_of(self, provider: str) -> Loss:
        if provider == OURS:
            return ours(self.loss, self.backend)
        plain = dense(self.loss)
        if provider == DENSE:
            return plain
        return compiled(plain)


@functools.cache
def compiled(loss: Loss) -> Loss:
    """By torch.compile, for each shape by itself."""
    made: Loss = torch.compile(loss, dynamic=False)
    return made


def check(plan: Plan) -> dict[str, list[str]]:
    """What is wrong with each provider's loss and gradients on small batches; none: right.

    Ours by the rule of accuracy against the reference; dense PyTorch, which is a yardstick and may
    be less accurate, in float64; compiled against dense.
    """
    reference, setting = ours(plan.loss, "reference"), plan.setting
    exact = setting._replace(dtype=torch.float64, device=torch.device("cpu"))
    plain = dense(plan.loss)
    wrong = {
        OURS: inaccuracies(plan.loss_of(OURS), reference, reference, setting),
        DENSE: disagreements(plain, reference, exact),
    }
    if plan.compiled:
        wrong[COMPILED] = inaccuracies(plan.loss_of(COMPILED), plain, plain, setting)
    return wrong


def measure(plan: Plan, shape: Shape, rounds: int) -> dict[str, Any]:
    """Sizes, and of each provider its seconds, ratios and peak, or why it was skipped."""
    if plan.compiled:
        torch.compiler.reset()  # else it stops compiling after eight shapes
    found: dict[str, Any] = {name: {} for name in plan.providers()}
    for name, of_name in found.items():
        reason = _too_large(name, plan, shape)
        if reason is not None:
            of_name["skipped"] = reason
    _peaks(plan, shape, found)
    inputs = _inputs(plan, shape)
    runs = {name: _step(name, plan, inputs) for name, x in found.items() if "skipped" not in x}
    seconds_of = gpu_seconds if plan.setting.device.type == "cuda" else wall_seconds
    seconds = interleave(runs, rounds, seconds_of)
    for name in runs:
        found[name]["seconds"] = seconds[name]
        found[name]["median_seconds"] = statistics.median(seconds[name])
        for base in (PRODUCTS, OURS):
            if base in seconds:
                found[name][f"of_{base}"] = ratio(seconds, name, base)
    n, m, d, _ = shape
    return {"n": n, "m": m, "dim": d, "flops_of_products": 6 * n * m * d, "providers": found}


def _too_large(name: str, plan: Plan, shape: Shape) -> str | None:
    stores = name != OURS or plan.backend == "reference"
    free = free_bytes(plan.setting.device)
    if not stores or free is None:
        return None
    if name == PRODUCTS:
        of_pair = plan.setting.dtype.itemsize
    else:
        more = _MATRICES_OF_LEVEL * shape.K if plan.loss == "multi_level" else 0
        of_pair = 4 * (_MATRICES + more)
    needed = of_pair * shape.N * shape.M
    if needed <= free // 2:
        return None
    return (
        f"N x M matrices, about {needed / 2**30:.1f} GiB, more than half of the "
        f"{free / 2**30:.1f} GiB that are free"
    )


def _peaks(plan: Plan, shape: Shape, found: dict[str, Any]) -> None:
    """Adds `peak_bytes`: over the inputs, of a step with its gradients."""
    gpu = plan.setting.device.type == "cuda"
    for name, of_name in found.items():
        if "skipped" in of_name or not (gpu or can_measure()):
            continue
        try:
            of_name["peak_bytes"] = (
                peak_of_step(name, plan, shape)
                if gpu
                else peak_apart(peak_of_step, name, plan, shape)
            )
        except (torch.OutOfMemoryError, MemoryError):
            of_name["skipped"] = OUT_OF_MEMORY
        except RuntimeError as error:  # of its process: what ended that would end this one
            of_name["skipped"] = str(error).splitlines()[0]
        except OSError as error:
            of_name["peak_skipped"] = str(error).splitlines()[0]


def peak_of_step(name: str, plan: Plan, shape: Shape) -> int:
    """Bytes over the inputs; this process does nothing else."""
    # Libraries and their buffers are loaded; what is compiled is compiled for its shape.
    warm = shape if name == COMPILED else shape._replace(N=min(shape.N, 512), M=min(shape.M, 512))
    _step(name, plan, _inputs(plan, warm))()
    inputs = _inputs(plan, shape)

    def run() -> None:
        _step(name, plan, inputs)()

    if plan.setting.device.type == "cuda":
        return peak_on_gpu(run)
    give_back_freed()
    return peak_of(run)


def _inputs(plan: Plan, shape: Shape) -> Inputs:
    inputs = make_inputs(shape, plan.setting.dtype)
    return on_device(inputs, plan.setting)


def _step(name: str, plan: Plan, inputs: Inputs) -> Callable[[], object]:
    """One training step's work for the loss: forward and backward."""
    if name == PRODUCTS:
        return Products(inputs.queries.detach(), inputs.candidates.detach())
    return partial(gradients, plan.loss_of(name), inputs, scale_of(plan.setting, SCALE))


def gradients(loss: Loss, inputs: Inputs, scale: Tensor) -> tuple[Tensor, ...]:
    """Of the queries and the candidates: forward and backward."""
    return torch.autograd.grad(loss(inputs, scale), (inputs.queries, inputs.candidates))


class Products:
    """What no step can do without: the similarities, and both gradients from theirs.

    `similarities=2`: with the similarities twice, where a loss cannot do with once.
    """

    def __init__(self, q: Tensor, c: Tensor, similarities: int = 1) -> None:
        self._similarities = similarities
        self._q, self._c = q, c
        self._s = q.new_empty(len(q), len(c))  # [N, M]
        self._d_q, self._d_c = torch.empty_like(q), torch.empty_like(c)

    def __call__(self) -> None:
        for _ in range(self._similarities):
            self.forward()
        torch.mm(self._s, self._c, out=self._d_q)
        torch.mm(self._s.t(), self._q, out=self._d_c)

    def forward(self) -> None:
        torch.mm(self._q, self._c.t(), out=self._s)
