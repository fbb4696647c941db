"""Pairs alone at their level, with logits so large that their roundings are large numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grainrank import DenseLevels, level_statistics

N, M, D = 33, 3, 8
SCALE = 1e4 / 3


def lone_pairs(
    backend: str, level_scales: list[float] | None, negative: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of lse, and of neg_lse too, in the queries, and what they have to be: a pair that
    is alone has the probability 1.
    """
    generator = torch.Generator().manual_seed(5)
    q, c = (1e3 * torch.randn(n, D, generator=generator) for n in (N, M))
    q.requires_grad_()
    table: Any = level_statistics(
        q,
        c,
        DenseLevels(torch.arange(M, dtype=torch.int8).expand(N, M).contiguous(), M - 1),
        logit_scale=SCALE,
        level_scales=level_scales,
        normalize=False,
        backend=backend,  # type: ignore[arg-type]
    )
    above = 2.0 if negative else 0.0
    loss = table.lse.sum()
    if negative:
        loss = loss - above * table.neg_lse[:, 1:].sum()
    loss.backward()
    weight = torch.tensor([1.0, 1 + above, 1 + above]) * torch.tensor(level_scales or [1.0] * M)
    assert q.grad is not None
    return q.grad, (SCALE * weight @ c).expand(N, D)
