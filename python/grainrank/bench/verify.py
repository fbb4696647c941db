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
_ROUNDINGS = 32  # in narrower dtypes


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


def disagreements(
    actual: Loss,
    truth: Loss,
    setting: Setting,
    *,
    shape: Shape = SHAPE,
    draws: int = _DRAWS,
    learns_scale: bool = True,
) -> list[str]:
    """What differs between `actual` and `truth` in float64: whether they are one loss at all.

    In a narrower dtype `actual` may be off by some roundings, not by more.
    `learns_scale=False`: `actual` takes the scale as a number and has no gradient for it.
    """
    exact = setting._replace(dtype=torch.float64, device=torch.device("cpu"))
    narrow = setting.dtype != torch.float64
    tolerance = _ROUNDINGS * torch.finfo(setting.dtype).eps if narrow else _TOLERANCE
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(draws):
        inputs = make_inputs(shape._replace(K=setting.levels), setting.dtype, seed=seed)
        a_all = loss_and_gradients(actual, inputs, setting, learns_scale=learns_scale)
        t_all = loss_and_gradients(truth, inputs, exact, learns_scale=learns_scale)
        for name, a, t in zip(_NAMES, a_all, t_all, strict=False):
            pair = float((a.double() - t).abs().max()), float(t.abs().max())
            found.setdefault(name, []).append(pair)
    wrong = []
    for name, pairs in found.items():
        bound = tolerance * max(largest for _, largest in pairs)
        over = [error for error, _ in pairs if not error <= bound]  # NaN is over
        if over:
            dtype = str(setting.dtype).removeprefix("torch.")
            wrong.append(f"{name}: error {over[0]:.2e} is above {bound:.2e} ({dtype})")
    return wrong


_NAMES = ("loss", "queries' gradient", "candidates' gradient", "scale's gradient")


def loss_and_gradients(
    loss: Loss, inputs: Inputs, setting: Setting, *, learns_scale: bool = True
) -> tuple[Tensor, ...]:
    """As in `_NAMES`, on the CPU, where float64 is at hand."""
    placed = on_device(inputs, setting)
    scale = scale_of(setting, _SCALE).requires_grad_(learns_scale)
    value = loss(placed, scale)
    to = [placed.queries, placed.candidates, *([scale] if learns_scale else [])]
    gradients = torch.autograd.grad(value, to)
    return tuple(x.detach().cpu() for x in (value, *gradients))


def on_device(inputs: Inputs, setting: Setting) -> Inputs:
    """Moved, and the embeddings ready for a gradient."""
    q, c = (x.detach().to(setting.device, setting.dtype).requires_grad_() for x in inputs[:2])
    return Inputs(q, c, *(keys.to(setting.device) for keys in inputs[2:]))


def scale_of(setting: Setting, value: float) -> Tensor:
    """0-d, of the logits: float32 beside half precision."""
    wide = torch.float64 if setting.dtype == torch.float64 else torch.float32
    return torch.tensor(value, dtype=wide, device=setting.device)
