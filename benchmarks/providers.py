"""What a user has for one training step of the loss; each provider takes a `Step`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from grainrank import GrainKeys, multi_level_ranking_loss

TEMPERATURE = 0.07
PREFIXES = (64, 128, 256, 768)
SMALLEST = -1e30


@dataclass
class Step:
    """Inputs `[N, D]`, `[M, D]` and label paths `[N, K]`, `[M, K]`."""

    queries: Tensor
    candidates: Tensor
    query_keys: Tensor
    candidate_keys: Tensor

    def keys(self) -> tuple[Tensor, Tensor]:
        return self.query_keys, self.candidate_keys

    @staticmethod
    def make(n: int, m: int, d: int, dtype: torch.dtype = torch.float32) -> Step:
        """A batch with three grains: 20 classes of 10 subclasses, of 30 items each."""
        generator = torch.Generator().manual_seed(0)

        def draw(high: int, size: int) -> Tensor:
            return torch.randint(0, high, (size,), generator=generator)

        top = draw(20, m)
        middle = top * 10 + draw(10, m)
        keys = torch.stack([top, middle, middle * 30 + draw(30, m)], dim=1)  # [M, 3]
        partner = torch.arange(n) % m
        candidates = torch.randn(m, d, generator=generator)
        queries = candidates[partner] + torch.randn(n, d, generator=generator)
        return Step(
            queries.to(dtype).requires_grad_(),
            candidates.to(dtype).requires_grad_(),
            keys[partner],
            keys,
        )


def _grainrank(step: Step, backend: Literal["cpu", "reference"], **options: Any) -> Tensor:
    levels = GrainKeys(step.query_keys, step.candidate_keys)
    loss: Tensor = multi_level_ranking_loss(
        step.queries, step.candidates, levels, temperature=TEMPERATURE, backend=backend, **options
    )
    return loss


def fused(step: Step) -> Tensor:
    return _grainrank(step, "cpu")


def symmetric(step: Step) -> Tensor:
    return _grainrank(step, "cpu", direction="symmetric")


def matryoshka(step: Step) -> Tensor:
    return _grainrank(step, "cpu", matryoshka_dims=PREFIXES)


def by_calls(loss: Callable[[Step], Tensor], step: Step) -> Tensor:
    """One call of the loss for each prefix, as MatryoshkaLoss of sentence-transformers does it."""
    losses = [
        loss(Step(step.queries[:, :d], step.candidates[:, :d], *step.keys())) for d in PREFIXES
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
    z = normalize(step.queries, dim=1) @ normalize(step.candidates, dim=1).T / TEMPERATURE
    equal = step.query_keys[:, None] == step.candidate_keys[None]  # [N, M, K]
    level = equal.cumprod(dim=2).sum(dim=2)
    highest = step.query_keys.shape[1]
    loss = z.new_zeros(z.shape[0])
    used = torch.zeros_like(loss, dtype=torch.bool)
    for k in range(1, highest + 1):
        positive = level == k
        has = positive.any(dim=1)
        lse_positive = z.masked_fill(~positive, SMALLEST).logsumexp(dim=1)
        lse_all = z.masked_fill(level > k, SMALLEST).logsumexp(dim=1)
        weight = 1.0 if k == highest else 0.1
        loss = loss + weight * torch.where(has, lse_all - lse_positive, 0.0)
        used |= has
    return loss.sum() / used.sum()


def gradients(provider: Callable[[Step], Tensor], step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, dQ and dC of one forward and backward."""
    step.queries.grad = step.candidates.grad = None
    loss = provider(step)
    loss.backward()
    assert step.queries.grad is not None
    assert step.candidates.grad is not None
    return loss.detach(), step.queries.grad, step.candidates.grad


class Products:
    """The bare products of a step, on preallocated outputs: the floor. Three, or four with the
    similarities twice.
    """

    def __init__(self, step: Step, similarities: int = 1) -> None:
        self.similarities = similarities
        self.q, self.c = step.queries.detach(), step.candidates.detach()
        self.s = torch.mm(self.q, self.c.t())
        self.d_q, self.d_c = torch.empty_like(self.q), torch.empty_like(self.c)

    def __call__(self) -> None:
        for _ in range(self.similarities):
            torch.mm(self.q, self.c.t(), out=self.s)
        torch.mm(self.s, self.c, out=self.d_q)
        torch.mm(self.s.t(), self.q, out=self.d_c)
