"""grainrank's step and the dense one, for the benchmarks of a single question; cf. the suite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from grainrank.bench import measure
from grainrank.bench.losses import dense, ours
from grainrank.bench.memory import give_back_freed, peak_of
from grainrank.testing import Inputs, Shape, make_inputs

Step = Inputs
TEMPERATURE = 0.07
PREFIXES = (64, 128, 256, 768)
GRAINS = 3


def make(n: int, m: int, d: int, dtype: torch.dtype = torch.float32) -> Step:
    """A batch with three grains, ready for gradients."""
    inputs = make_inputs(Shape(n, m, d, GRAINS), dtype)
    inputs.queries.requires_grad_()
    inputs.candidates.requires_grad_()
    return inputs


def _scale(step: Step) -> Tensor:
    """float32 beside half precision, as in grainrank.bench."""
    wide = torch.float64 if step.queries.dtype == torch.float64 else torch.float32
    return torch.tensor(1 / TEMPERATURE, dtype=wide, device=step.queries.device)


def _grainrank(step: Step, backend: Literal["cpu", "reference"], **options: Any) -> Tensor:
    return ours("multi_level", backend, **options)(step, _scale(step))


def fused(step: Step) -> Tensor:
    return _grainrank(step, "cpu")


def symmetric(step: Step) -> Tensor:
    return _grainrank(step, "cpu", direction="symmetric")


def matryoshka(step: Step) -> Tensor:
    return _grainrank(step, "cpu", matryoshka_dims=PREFIXES)


def by_calls(loss: Callable[[Step], Tensor], step: Step) -> Tensor:
    """One call of the loss for each prefix, as MatryoshkaLoss of sentence-transformers does it."""
    losses = [
        loss(step._replace(queries=step.queries[:, :d], candidates=step.candidates[:, :d]))
        for d in PREFIXES
    ]
    return torch.stack(losses).sum()


def matryoshka_by_calls(step: Step) -> Tensor:
    return by_calls(fused, step)


def eager_matryoshka(step: Step) -> Tensor:
    return by_calls(eager, step)


def reference(step: Step) -> Tensor:
    return _grainrank(step, "reference")


def eager(step: Step) -> Tensor:
    """The loss as one writes it in PyTorch: matrix, masks, autograd."""
    return dense("multi_level")(step, _scale(step))


def gradients(provider: Callable[[Step], Tensor], step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, dQ and dC of one forward and backward."""
    loss = provider(step)
    d_q, d_c = torch.autograd.grad(loss, (step.queries, step.candidates))
    return loss.detach(), d_q, d_c


def products(step: Step, similarities: int = 1) -> measure.Products:
    """The bare products of a step, on preallocated outputs: the floor. Three, or four with the
    similarities twice.
    """
    return measure.Products(step.queries.detach(), step.candidates.detach(), similarities)


def peak_of_provider(name: str, n: int, d: int) -> int:
    """Bytes of a step over its inputs, in this process, which does nothing else."""
    provider = globals()[name]
    gradients(provider, make(512, 512, d))  # libraries and their buffers are loaded
    step = make(n, n, d)
    give_back_freed()
    return peak_of(lambda: gradients(provider, step))
