"""A small loss with any options, and its gradients, to compare one backend with another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grainrank import multi_level_ranking_loss
from grainrank.testing import Shape, make_inputs


def loss_step(n: int, m: int, backend: Any, memory: int = 0, **options: Any) -> list[Tensor]:
    """Of m candidates, and so many more in the memory, which have no tables and no gradient."""
    inputs = make_inputs(Shape(n, m + memory, 24, 3), torch.float64)
    q, c = (x.clone().requires_grad_() for x in (inputs.queries, inputs.candidates[:m]))
    loss = multi_level_ranking_loss(
        q, c, inputs.levels, memory=inputs.candidates[m:] if memory else None, temperature=0.2,
        backend=backend, **options,
    )  # fmt: skip
    return [loss.detach(), *torch.autograd.grad(loss, [q, c])]
