"""What a step costs in products, and how its gradients behave in a graph."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from profiling import profiled
from torch import Tensor

from grainrank import level_statistics, multi_level_ranking_loss
from grainrank.testing import Shape, make_inputs

SHAPE = Shape(96, 120, 32, 3)
SIZES = SHAPE[:3]
ONE_ROW = 120 * 4 / 2**20  # MiB


def leaves(*needs: bool) -> tuple[tuple[Tensor, ...], Any]:
    inputs = make_inputs(SHAPE)
    values = inputs.queries, inputs.candidates, torch.tensor(4.0)
    wanted = needs or (True, True, True)
    kept = tuple(x.clone().requires_grad_(n) for x, n in zip(values, wanted, strict=True))
    return kept, inputs.levels


def loss_of(values: tuple[Tensor, ...], levels: Any, **options: Any) -> Tensor:
    q, c, scale = values
    loss: Tensor = multi_level_ranking_loss(q, c, levels, logit_scale=scale, **options)
    return loss


@pytest.mark.parametrize("blocks", [1, 7])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_number_of_products(reduction: str, blocks: int) -> None:
    """3 where the gradients are ready with the forward, 4 where the backward sweeps again, but for
    the rows whose similarities fit into the workspace.
    """
    values, levels = leaves()
    options = {"reduction": reduction, "workspace_mb": ONE_ROW * (96 // blocks + 1)}
    forward = profiled(lambda: loss_of(values, levels, **options))
    loss = loss_of(values, levels, **options)
    backward = profiled(lambda: loss.sum().backward())
    kept = min(96 // blocks + 1, 96) / 96
    expected = (1, 3 - kept) if reduction == "none" else (3, 0)
    assert (forward.products(*SIZES), backward.products(*SIZES)) == pytest.approx(expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_grad_is_one_product(reduction: str) -> None:
    values, levels = leaves()
    expected = loss_of(values, levels, reduction=reduction)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            step = profiled(lambda: loss_of(values, levels, reduction=reduction))
            assert step.products(*SIZES) == 1
            loss = loss_of(values, levels, reduction=reduction)
        assert not loss.requires_grad
        assert torch.equal(loss, expected)


def test_inputs_that_need_no_gradient_cost_no_product() -> None:
    expected = {(0, 0, 0): 1, (1, 0, 0): 2, (0, 1, 0): 2, (0, 0, 1): 2, (1, 0, 1): 2, (0, 1, 1): 2}
    for needs, products in expected.items():
        values, levels = leaves(*map(bool, needs))
        step = profiled(lambda v=values, y=levels: loss_of(v, y))
        assert step.products(*SIZES) == products, needs


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_one_side_alone_gets_the_same_gradient(reduction: str, backend: str) -> None:
    options = {"reduction": reduction, "backend": backend, "workspace_mb": ONE_ROW * 17}
    values, levels = leaves()
    loss_of(values, levels, **options).sum().backward()
    for i in range(3):
        alone, _ = leaves(*(i == k for k in range(3)))
        loss_of(alone, levels, **options).sum().backward()
        assert [x.grad is not None for x in alone] == [i == k for k in range(3)]
        torch.testing.assert_close(alone[i].grad, values[i].grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("rows", [96, 20, 7], ids="{} rows".format)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_backward(reduction: str, rows: int, backend: str) -> None:
    values, levels = leaves()
    options: dict[str, Any] = {"reduction": reduction, "workspace_mb": ONE_ROW * rows}
    loss = loss_of(values, levels, **options, backend=backend).sum()
    loss.backward(retain_graph=True)
    first = [x.grad.clone() for x in values if x.grad is not None]
    loss.backward()
    for x, once in zip(values, first, strict=True):
        assert x.grad is not None
        assert torch.equal(x.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_gradients_that_were_ready_are_not_copied(backend: str) -> None:
    """Where no other backward will come for them."""
    values, levels = leaves()
    seen = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = loss_of(values, levels, backend=backend)
    for retain, same in ((True, False), (False, True)):
        for x in values:
            x.grad = None
        loss.backward(retain_graph=retain)
        for x in values[:2]:
            assert x.grad is not None
            assert (x.grad.data_ptr() in seen) == same


def test_many_upstream_gradients_at_once(backend: str) -> None:
    """What `torch.autograd.functional.jacobian(vectorize=True)` does."""
    values, levels = leaves()
    loss = loss_of(values, levels, backend=backend)
    once = torch.autograd.grad(loss, values, retain_graph=True)
    upstream = torch.tensor([1.0, -2.0])
    many = torch.autograd.grad(loss, values, upstream, is_grads_batched=True)
    for a, b in zip(once, many, strict=True):
        torch.testing.assert_close(b, torch.stack([a, -2 * a]))


def test_upstream_gradient_scales(backend: str) -> None:
    values, levels = leaves()
    plain = torch.autograd.grad(loss_of(values, levels, backend=backend), values)
    tripled = torch.autograd.grad(-3 * loss_of(values, levels, backend=backend), values)
    for a, b in zip(plain, tripled, strict=True):
        torch.testing.assert_close(b, -3 * a)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_second_derivative(reduction: str, backend: str) -> None:
    """A gradient of the gradient is refused, not silently 0."""
    values, levels = leaves()
    loss = loss_of(values, levels, reduction=reduction, backend=backend).sum()
    (grad, *_) = torch.autograd.grad(loss, values, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        grad.sum().backward()


def test_gradient_reaches_the_encoder(backend: str) -> None:
    """Through a layer, with the same tensor on both sides."""
    inputs = make_inputs(SHAPE)
    layer = torch.nn.Linear(32, 8)
    x = layer(inputs.queries)
    loss = multi_level_ranking_loss(x, x, temperature=0.5, backend=backend)  # type: ignore[arg-type]
    loss.backward()
    ours = layer.weight.grad
    layer.zero_grad()
    unit = torch.nn.functional.normalize(layer(inputs.queries))
    logits = unit @ unit.T / 0.5
    torch.nn.functional.cross_entropy(logits, torch.arange(96)).backward()
    torch.testing.assert_close(ours, layer.weight.grad, rtol=1e-4, atol=1e-7)


def test_part_of_the_tables(backend: str) -> None:
    """Tables that the head does not use cost no gradient, and give none."""
    values, levels = leaves()
    q, c, scale = values
    stats = level_statistics(q, c, levels, logit_scale=scale, backend=backend)  # type: ignore[arg-type]
    assert not any(t.requires_grad for t in (stats.count, stats.highest_at, stats.lowest_at))
    zero = stats.lse.sum() * 0 + (stats.highest * (stats.count > 0)).sum()
    a = torch.autograd.grad(zero, values, retain_graph=True)
    b = torch.autograd.grad((stats.highest * (stats.count > 0)).sum(), values)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y)


def test_no_warning_in_a_plain_step(backend: str) -> None:
    values, levels = leaves()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        loss_of(values, levels, backend=backend, return_stats=False).backward()
    assert seen == []
