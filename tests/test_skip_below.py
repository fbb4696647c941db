"""`skip_below`: what is left out of the gradients is within the bound that its docstring states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import grainrank
from grainrank import GrainKeys, multi_level_ranking_loss
from grainrank.cpu import CpuPasses

N, M, D, GROUPS = 600, 700, 24, 6
SHARE = 2.0**-6
TEMPERATURE = 0.05
Gradients = tuple[Tensor, Tensor]


def grouped(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Embeddings `[rows, D]`, similar ones together, and their groups `[rows, 1]`."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(GROUPS, D, generator=torch.Generator().manual_seed(0))
    group = torch.arange(rows) * GROUPS // rows
    noise = 0.3 * torch.randn(rows, D, generator=generator)
    return centres[group] + noise, group[:, None]


def siglip(q: Tensor, c: Tensor, levels: GrainKeys, **options: Any) -> Tensor:
    return grainrank.siglip_loss(q, c, levels, logit_bias=-20.0, **options)


# With what each pair that is left out may change: the level weights over the rows.
LOSSES: dict[str, tuple[Callable[..., Tensor], dict[str, Any], float]] = {
    "one direction": (multi_level_ranking_loss, {}, 1 / N),
    "symmetric": (multi_level_ranking_loss, {"direction": "symmetric"}, 0.5 / N + 0.5 / M),
    "joint": (grainrank.info_nce_loss, {"direction": "joint"}, 3 / N),
    "prefixes": (multi_level_ranking_loss, {"matryoshka_dims": (8, D)}, 2 / N),
    "dot products": (multi_level_ranking_loss, {"normalize": False}, 1 / N),
    "memory": (multi_level_ranking_loss, {"memory": grouped(300, 9)[0]}, 1 / N),
    "sigmoid": (siglip, {}, 1 / N),
}


def gradients(name: str, dtype: torch.dtype, **more: Any) -> tuple[Tensor, Gradients, Tensor]:
    """The loss, the gradients of the rows, which have length 1, and of the scale."""
    function, options, _ = LOSSES[name]
    (q, q_group), (c, c_group) = grouped(N, 1), grouped(M, 2)
    q, c = (normalize(x, dim=1).to(dtype).requires_grad_() for x in (q, c))
    scale = torch.tensor(1 / TEMPERATURE, dtype=torch.promote_types(dtype, torch.float32))
    scale.requires_grad_()
    if name == "joint":
        c_group, c = c_group[:N], c.detach()[:N].requires_grad_()
    if "memory" in options:
        columns = torch.cat([c_group, grouped(300, 9)[1]])
        options = options | {"memory": options["memory"].to(dtype)}
    else:
        columns = c_group
    levels = GrainKeys(q_group, columns)
    options = options | more
    loss = function(q, c, levels, logit_scale=scale, backend="cpu", **options)
    loss.backward()
    assert q.grad is not None
    assert c.grad is not None
    assert scale.grad is not None
    return loss.detach(), (q.grad, c.grad), scale.grad


@pytest.fixture
def flops(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Multiply-adds of the products."""
    counted: list[int] = []
    product = CpuPasses.product_

    def counting(self: CpuPasses, out: Tensor, a: Tensor, b: Tensor, add: Any = None) -> None:
        counted.append(a.shape[0] * a.shape[1] * b.shape[1])
        product(self, out, a, b, add)

    monkeypatch.setattr(CpuPasses, "product_", counting)
    return counted


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_left_out_is_within_the_bound(name: str, flops: list[int]) -> None:
    exact = gradients(name, torch.float64)
    all_flops = sum(flops)
    flops.clear()
    found = gradients(name, torch.float64, skip_below=SHARE)
    assert sum(flops) < 0.9 * all_flops  # there was something to leave out
    torch.testing.assert_close(found[0], exact[0], rtol=1e-12, atol=0)
    each = SHARE * LOSSES[name][2] / TEMPERATURE  # of a pair
    for actual, expected, pairs in zip(found[1], exact[1], (M + 300, N), strict=True):
        assert float((actual - expected).norm(dim=1).max()) <= pairs * each
        assert not torch.equal(actual, expected)
    assert float((found[2] - exact[2]).abs()) <= N * (M + 300) * each * TEMPERATURE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["one direction", "symmetric", "prefixes"])
def test_narrower_dtypes(name: str, dtype: torch.dtype) -> None:
    exact = gradients(name, torch.float64)
    found, rounded = gradients(name, dtype, skip_below=2.0**-12), gradients(name, dtype)
    for actual, usual, expected in zip(found[1], rounded[1], exact[1], strict=True):
        usually = float((usual.double() - expected).norm(dim=1).max())
        left_out = max(N, M) * 2.0**-12 * LOSSES[name][2] / TEMPERATURE
        assert float((actual.double() - expected).norm(dim=1).max()) <= 2 * usually + left_out


def test_rows_of_any_length() -> None:
    """The bound is that of rows of length 1: what is left out does not depend on the length."""
    (q, group), (c, c_group) = grouped(N, 1), grouped(M, 2)
    levels = GrainKeys(group, c_group)
    found = []
    for length in (1.0, 1024.0):
        a, b = (length * q).requires_grad_(), (c / length).requires_grad_()
        options: dict[str, Any] = {"skip_below": SHARE, "matryoshka_dims": (8, D)}
        multi_level_ranking_loss(a, b, levels, temperature=TEMPERATURE, **options).backward()
        assert a.grad is not None
        assert b.grad is not None
        found.append((length * a.grad, b.grad / length))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_left_out_unless_asked_for(name: str) -> None:
    first, second = gradients(name, torch.float32), gradients(name, torch.float32, skip_below=None)
    for one, other in zip(first[1], second[1], strict=True):
        assert torch.equal(one, other)


def test_a_nan_is_not_left_out() -> None:
    (q, group), (c, c_group) = grouped(N, 1), grouped(M, 2)
    c[5] = torch.nan
    c.requires_grad_()
    q.requires_grad_()
    loss = multi_level_ranking_loss(
        q, c, GrainKeys(group, c_group), temperature=TEMPERATURE, skip_below=SHARE
    )
    loss.backward()
    assert q.grad is not None
    assert bool(q.grad.isnan().any(dim=1).all())


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0.0, ValueError, "skip_below must be positive and finite, got 0.0"),
        (1.0, ValueError, "skip_below must be below 1, a share of the largest .* got 1.0"),
        (float("nan"), ValueError, "skip_below must be positive and finite, got nan"),
        ("2", TypeError, "skip_below must be a number, got str"),
    ],
)
def test_wrong_values(value: Any, error: type[Exception], message: str) -> None:
    q = torch.eye(3)
    with pytest.raises(error, match=message):
        multi_level_ranking_loss(q, q, temperature=TEMPERATURE, skip_below=value)
