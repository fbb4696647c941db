"""Some steps of gradient descent on a loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from grainrank import GrainKeys


def descend(loss: Callable[..., Tensor]) -> tuple[float, float]:
    """The loss of a linear encoder before and after; 40 items of two grains, without themselves."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 12, generator=generator)
    keys = torch.stack([torch.arange(40) // 20, torch.arange(40) // 4], dim=1)
    ids = torch.arange(40)
    levels = GrainKeys(keys, keys).exclude(ids, ids)
    weight = torch.randn(12, 8, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.05)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(x @ weight, x @ weight, levels)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    return values[0], values[-1]
