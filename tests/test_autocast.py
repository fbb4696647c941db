"""Autocast: the operators keep their own dtypes; mixed dtypes are read exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from grainrank import level_statistics, multi_level_ranking_loss
from grainrank.testing import Shape, make_inputs

SHAPE = Shape(20, 30, 16, 3)


def step(q: Tensor, c: Tensor, levels: object, **options: object) -> list[Tensor]:
    q, c = q.clone().requires_grad_(), c.clone().requires_grad_()
    scale = torch.tensor(5.0, requires_grad=True)
    loss = multi_level_ranking_loss(q, c, levels, logit_scale=scale, **options)  # type: ignore[arg-type]
    loss.sum().backward()
    assert q.grad is not None
    assert c.grad is not None
    assert scale.grad is not None
    return [loss.detach(), q.grad, c.grad, scale.grad]


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_nothing_is_cast(dtype: torch.dtype, reduction: str, backend: str) -> None:
    """Bit for bit the step without autocast, forward and backward."""
    inputs = make_inputs(SHAPE, dtype)
    options = {"reduction": reduction, "backend": backend}
    plain = step(*inputs[:2], inputs.levels, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = step(*inputs[:2], inputs.levels, **options)
    assert [x.dtype for x in inside] == [torch.float32, dtype, dtype, torch.float32]
    for a, b in zip(plain, inside, strict=True):
        assert torch.equal(a, b)


def test_two_dtypes_under_autocast(backend: str) -> None:
    """bf16 against float32: both are read in float32; each gradient has its input's dtype."""
    inputs = make_inputs(SHAPE)
    q, c = inputs.queries.bfloat16(), inputs.candidates
    expected = step(q.float(), c, inputs.levels, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = step(q, c, inputs.levels, backend=backend)
    assert [x.dtype for x in got] == [torch.float32, torch.bfloat16, torch.float32, torch.float32]
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1].bfloat16())
    assert torch.equal(got[2], expected[2])


def test_encoder_under_autocast(backend: str) -> None:
    """A layer that autocast runs in bf16 feeds the loss; its weights get float32 gradients."""
    inputs = make_inputs(SHAPE)
    layer = torch.nn.Linear(16, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q, c = layer(inputs.queries), layer(inputs.candidates)
        assert q.dtype == torch.bfloat16
        loss = multi_level_ranking_loss(q, c, inputs.levels, temperature=0.2, backend=backend)  # type: ignore[arg-type]
        lse = level_statistics(q, c, inputs.levels, temperature=0.2, backend=backend).lse  # type: ignore[arg-type]
    loss.backward()
    assert loss.dtype == lse.dtype == torch.float32
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.abs().sum() > 0


def test_small_gradients_survive_the_loss_scaler(backend: str) -> None:
    """Unscaled gradients far below what float16 holds: the scaler's factor comes first."""
    inputs = make_inputs(Shape(64, 64, 16, 2), torch.float16)
    q = inputs.queries.requires_grad_()
    factor = 2.0**16
    loss = multi_level_ranking_loss(
        q,
        inputs.candidates,
        inputs.levels,
        logit_scale=1e-4,
        backend=backend,  # type: ignore[arg-type]
    )
    (loss * factor).backward()
    exact = inputs.queries.detach().double().requires_grad_()
    multi_level_ranking_loss(
        exact, inputs.candidates.double(), inputs.levels, logit_scale=1e-4, backend="reference"
    ).backward()
    assert q.grad is not None
    assert exact.grad is not None
    assert float(exact.grad.abs().max()) < torch.finfo(torch.float16).tiny
    torch.testing.assert_close(q.grad.double() / factor, exact.grad, rtol=2e-3, atol=1e-9)
