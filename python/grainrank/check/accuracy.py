"""The rows of the command in one process: `backend="auto"` by the rule of accuracy."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import multi_level_ranking_loss, siglip_loss
from ..backends import resolve
from ..testing import DTYPES, Draw, Inputs, Shape, assert_accurate, make_inputs

_SHAPE = Shape(N=128, M=160, D=64)
_DRAWS = 8  # a scalar of the reference is sometimes luckily exact
_SCALE, _BIAS = 6.0, -2.0

Loss = Callable[..., Tensor]


def _siglip(*args: Any, **options: Any) -> Tensor:
    return siglip_loss(*args, logit_bias=_BIAS, **options)


def _losses() -> dict[str, Loss]:
    symmetric = functools.partial(multi_level_ranking_loss, direction="symmetric")
    return {
        "multi-level, one way": multi_level_ranking_loss,
        "multi-level, symmetric": symmetric,
        "siglip": _siglip,
    }


def _step(
    loss: Loss, inputs: Inputs, backend: str, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Loss and gradients."""
    q, c = (x.to(device=device, dtype=dtype).requires_grad_() for x in inputs[:2])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scale = torch.tensor(_SCALE, dtype=wide, device=device, requires_grad=True)
    keys = inputs._replace(
        query_keys=inputs.query_keys.to(device), candidate_keys=inputs.candidate_keys.to(device)
    )
    value = loss(q, c, keys.levels, logit_scale=scale, backend=backend)
    d = torch.autograd.grad(value, (q, c, scale))
    names = ("queries' gradient", "candidates' gradient", "scale's gradient")
    return {"loss": value.detach(), **dict(zip(names, d, strict=True))}


def _row(case: str, loss: Loss, short: str, device: torch.device) -> dict[str, Any]:
    dtype = DTYPES[short]
    draws: dict[str, list[Draw]] = {}
    for seed in range(_DRAWS):
        inputs = make_inputs(_SHAPE, dtype, seed=seed)
        actual = _step(loss, inputs, "auto", dtype, device)
        reference = _step(loss, inputs, "reference", dtype, device)
        truth = _step(loss, inputs, "reference", torch.float64, device)
        for name, value in actual.items():
            draws.setdefault(name, []).append(Draw(value, reference[name], truth[name]))
    wrong = []
    for name, of_name in draws.items():
        try:
            assert_accurate(name, *of_name)
        except AssertionError as error:
            wrong.append(str(error))
    loss_draws = draws.pop("loss")
    scale_draws = draws.pop("scale's gradient")
    return {
        "case": f"{case}, {short}, {resolve('auto', device)}",
        "loss_error": _finite(_error(loss_draws)),
        "gradient_error": _finite(max(map(_error, draws.values()))),
        "scale_error": _finite(_error(scale_draws)),
        "verdict": "WRONG" if wrong else "ok",
        "explanation": "; ".join(wrong),
    }


def _error(draws: list[Draw]) -> float:
    """Of the largest element of the truth."""
    errors = torch.stack([(d.actual.double() - d.truth).abs().max() for d in draws])
    largest = torch.stack([d.truth.abs().max() for d in draws]).max()
    return float(errors.max() / largest)


def _finite(error: float) -> float | None:
    """JSON has no other numbers."""
    return error if math.isfinite(error) else None


def check_accuracy(device: torch.device) -> list[dict[str, Any]]:
    """A row for each loss and dtype."""
    return [
        _row(case, loss, short, device)
        for case, loss in _losses().items()
        for short in ("fp32", "bf16")
    ]
