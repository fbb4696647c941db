"""A loss whose last columns are a memory: they have no tables and no gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grainrank import multi_level_ranking_loss
from grainrank.testing import Shape, make_inputs


def memory_step(n: int, m: int, backend: Any) -> list[Tensor]:
    """The symmetric loss of m candidates, and 9 more in the memory, and its gradients."""
    inputs = make_inputs(Shape(n, m + 9, 24, 3), torch.float64)
    q, c = (x.clone().requires_grad_() for x in (inputs.queries, inputs.candidates[:m]))
    loss = multi_level_ranking_loss(
        q, c, inputs.levels, memory=inputs.candidates[m:], temperature=0.2, direction="symmetric",
        backend=backend,
    )  # fmt: skip
    return [loss.detach(), *torch.autograd.grad(loss, [q, c])]
