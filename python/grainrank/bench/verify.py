"""Whether a loss and its gradients are right on a small batch, before anybody times it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..testing import Draw, Inputs, Shape, assert_accurate, make_inputs
from .losses import Loss

SHAPE = Shape(N=96, M=112, D=40)
_DRAWS = 8  # a scalar of the reference is sometimes luckily exact
_SCALE = 6.0
_TOLERANCE = 1e-9  # in float64, of the largest element


class Setting(NamedTuple):
    """Where and in what a loss runs, on batches of `levels` grains."""

    dtype: torch.dtype
    device: torch.device
    levels: int = 3


def inaccuracies(actual: Loss, reference: Loss, truth: Loss, setting: Setting) -> list[str]:
    """What breaks the rule of `grainrank.testing`: none is right.

    `reference` runs in the dtype that is tried, `truth` in float64 on the same inputs.
    """
    draws: dict[str, list[Draw]] = {}
    exact = setting._replace(dtype=torch.float64)
    for seed in range(_DRAWS):
        inputs = make_inputs(SHAPE._replace(K=setting.levels), setting.dtype, seed=seed)
        three = (
            loss_and_gradients(loss, inputs, where)
            for loss, where in ((actual, setting), (reference, setting), (truth, exact))
        )
        for name, *values in zip(_NAMES, *three, strict=True):
            draws.setdefault(name, []).append(Draw(*values))
    wrong = []
    for name, of_name in draws.items():
        try:
            assert_accurate(name, *of_name)
        except AssertionError as error:
            wrong.append(str(error))
    return wrong


def disagreements(actual: Loss, truth: Loss, setting: Setting) -> list[str]:
    """What differs between two losses in float64: whether they are one loss at all."""
    wrong = []
    for seed in range(_DRAWS):
        inputs = make_inputs(SHAPE._replace(K=setting.levels), torch.float64, seed=seed)
        two = (loss_and_gradients(loss, inputs, setting) for loss in (actual, truth))
        for name, a, t in zip(_NAMES, *two, strict=True):
            error, bound = float((a - t).abs().max()), _TOLERANCE * float(t.abs().max())
            if not error <= bound:
                wrong.append(f"{name}: error {error:.2e} is above {bound:.2e} (float64)")
    return wrong


_NAMES = ("loss", "queries' gradient", "candidates' gradient", "scale's gradient")


def loss_and_gradients(loss: Loss, inputs: Inputs, setting: Setting) -> tuple[Tensor, ...]:
    """As in `_NAMES`, on the CPU, where float64 is at hand."""
    placed = on_device(inputs, setting)
    scale = scale_of(setting, _SCALE).requires_grad_()
    value = loss(placed, scale)
    gradients = torch.autograd.grad(value, (placed.queries, placed.candidates, scale))
    return tuple(x.detach().cpu() for x in (value, *gradients))


def on_device(inputs: Inputs, setting: Setting) -> Inputs:
    """Moved, and the embeddings ready for a gradient."""
    q, c = (x.detach().to(setting.device, setting.dtype).requires_grad_() for x in inputs[:2])
    return Inputs(q, c, *(keys.to(setting.device) for keys in inputs[2:]))


def scale_of(setting: Setting, value: float) -> Tensor:
    """0-d, of the logits: float32 beside half precision."""
    wide = torch.float64 if setting.dtype == torch.float64 else torch.float32
    return torch.tensor(value, dtype=wide, device=setting.device)
