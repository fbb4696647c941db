"""A loss under a false-negative margin, in every way of judging negatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_level_sources import references, sources
from torch import Tensor

from grainrank import info_nce_loss
from grainrank.testing import Shape, make_inputs

each_margin = pytest.mark.parametrize(
    "options",
    [{}, {"relative": True}, {"curated": True}, {"reference": True}],
    ids=lambda options: next(iter(options), "own"),
)


def margin_step(options: dict[str, Any], n: int, m: int, backend: Any) -> list[Tensor]:
    """The symmetric loss and its gradients, in float64."""
    given = dict(options)
    if given.get("curated"):
        given["curated"] = torch.arange(n) % 5, torch.arange(m) % 5
    if given.get("reference"):
        given["reference"] = references(n, m)
    levels = sources(n, m)["prefix"].false_negative_margin(0.05, **given)
    inputs = make_inputs(Shape(n, m, 24, 3), torch.float64)
    q, c = (x.clone().requires_grad_() for x in inputs[:2])
    loss = info_nce_loss(q, c, levels, temperature=0.2, direction="symmetric", backend=backend)
    return [loss.detach(), *torch.autograd.grad(loss, [q, c])]
