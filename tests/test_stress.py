"""Numerics under stress: what training meets on bad days, by the rule of accuracy; long runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from three_ways import LossOptions, judge, loss_step, true_loss_step
from torch import Tensor

from grainrank import DenseLevels, GrainKeys, LevelSource, multi_level_ranking_loss
from grainrank.testing import DTYPES, Inputs, Shape, make_inputs

SHAPE = Shape(33, 65, 24, 3)
DRAWS = 8
NARROW = {name: dtype for name, dtype in DTYPES.items() if name != "fp64"}


def near_duplicates(inputs: Inputs, seed: int) -> Inputs:
    """Candidates that differ in the last digits, those of the positives among them."""
    generator = torch.Generator().manual_seed(seed)
    noise = 1e-5 * torch.randn(inputs.candidates.shape, generator=generator)
    return inputs._replace(candidates=(inputs.queries[:1].float() + noise).to(inputs.queries.dtype))


def tiny(inputs: Inputs, seed: int) -> Inputs:
    """Some rows whose squares are subnormal in float32, among rows of the usual length."""
    q = inputs.queries.clone()
    q[::3] *= 1e-18 if q.dtype != torch.float16 else 1e-4
    return inputs._replace(queries=q)


def far_apart(inputs: Inputs, seed: int) -> Inputs:
    """Rows whose lengths differ by many orders of magnitude."""
    exponents = torch.linspace(-3, 3, len(inputs.candidates))[:, None]
    return inputs._replace(
        candidates=(inputs.candidates.float() * 10.0**exponents).to(inputs.candidates.dtype)
    )


HARD: dict[str, Callable[[Inputs, int], Inputs]] = {
    "near duplicates": near_duplicates,
    "tiny": tiny,
    "far apart": far_apart,
}


def check(
    change: Callable[[Inputs, int], Inputs],
    dtype: torch.dtype,
    options: LossOptions,
    levels: LevelSource | None = None,
) -> None:
    batches = [change(make_inputs(SHAPE, dtype, seed=seed), seed) for seed in range(DRAWS)]
    given = [(x, levels or x.levels) for x in batches]
    results = {
        backend: [loss_step(*x, options, backend, seed) for seed, x in enumerate(given)]
        for backend in ("cpu", "reference")
    }
    truth = [true_loss_step(*x, options, seed) for seed, x in enumerate(given)]
    for name in ("loss", "d_queries", "d_candidates", "d_scale"):
        judge(name, results["cpu"], results["reference"], truth)


@pytest.mark.parametrize("dtype", NARROW.values(), ids=NARROW.keys())
@pytest.mark.parametrize("kind", HARD)
def test_hard_embeddings(kind: str, dtype: torch.dtype, instruction_set: str) -> None:
    if kind == "near duplicates" and dtype == torch.bfloat16:
        pytest.skip("gradients that cancel: see test_gradients_that_cancel_in_bfloat16")
    check(HARD[kind], dtype, LossOptions())


def test_gradients_that_cancel_in_bfloat16(instruction_set: str) -> None:
    """Equal candidates: the terms of a query's gradient cancel, and what is left of them is their
    rounding to bfloat16 (2^-9 of each), where the products take them so.
    """
    inputs = near_duplicates(make_inputs(SHAPE, torch.bfloat16, seed=0), 0)
    options = LossOptions(reduction="sum")
    actual = loss_step(inputs, inputs.levels, options, "cpu", 0)["d_queries"].double()
    truth, _ = true_loss_step(inputs, inputs.levels, options, 0)["d_queries"]
    weights, upstream = 2 * (0.1 + 0.1 + 1.0), 1.5  # of the levels: of positives and of negatives
    terms = options.scale * weights * upstream / inputs.queries.double().norm(dim=1)  # [N]
    assert bool(((actual - truth).norm(dim=1) <= 2.0**-9 * terms).all())


@pytest.mark.parametrize("dtype", NARROW.values(), ids=NARROW.keys())
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_scales(scale: float, dtype: torch.dtype, instruction_set: str) -> None:
    """At 1e4 every softmax is one-hot."""
    check(lambda inputs, seed: inputs, dtype, LossOptions(scale=scale))


@pytest.mark.parametrize("level", [0, 7, 15])
def test_one_level_of_fifteen(level: int, instruction_set: str) -> None:
    """All others are empty."""
    values = torch.full((SHAPE.N, SHAPE.M), level, dtype=torch.int8)
    values[:, 0] = 0
    check(lambda inputs, seed: inputs, torch.float32, LossOptions(), DenseLevels(values, 15))


@pytest.fixture
def flush_subnormals() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush subnormal numbers")
    yield
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", NARROW.values(), ids=NARROW.keys())
def test_flushed_subnormals(
    dtype: torch.dtype, flush_subnormals: None, instruction_set: str
) -> None:
    check(tiny, dtype, LossOptions())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_error_names_the_row(reduction: Any, value: float, instruction_set: str) -> None:
    inputs = make_inputs(SHAPE, torch.float32, seed=0)
    inputs.queries[11, 3] = value
    with pytest.raises(ValueError, match=r"queries.*row 11"):
        multi_level_ranking_loss(
            *inputs[:2], inputs.levels, temperature=0.1, reduction=reduction, nan="raise"
        )


class Curve:
    """The losses of a small training: two linear towers on noisy pairs of three grains."""

    def __init__(self, backend: Any, dtype: torch.dtype = torch.float32) -> None:
        self.generator = torch.Generator().manual_seed(0)
        x = make_inputs(Shape(48, 48, 12, 3), torch.float64, seed=1)
        self.given = [t.to(dtype) for t in x[:2]]
        self.levels = GrainKeys(x.query_keys, x.candidate_keys)
        towers = [torch.randn(12, 8, generator=self.generator, dtype=torch.float64) for _ in "qc"]
        self.weights = [w.to(dtype).requires_grad_() for w in towers]
        self.log_scale = torch.tensor(1.5, dtype=dtype, requires_grad=True)
        learned = [*self.weights, self.log_scale]
        # Towards one optimum: on a path that steps over edges any two roundings part in the end.
        self.optimizer = torch.optim.SGD(learned, lr=0.02)
        self.backend = backend

    def step(self) -> float:
        q, c = (x @ w for x, w in zip(self.given, self.weights, strict=True))
        scale = self.log_scale.exp().clamp(max=30.0)
        loss: Tensor = multi_level_ranking_loss(
            q, c, self.levels, logit_scale=scale, backend=self.backend
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def test_loss_curve_is_the_references(backend: str) -> None:
    actual, expected = Curve(backend), Curve("reference", torch.float64)
    steps = 12 if backend == "triton" else 100
    curves = [[curve.step() for _ in range(steps)] for curve in (actual, expected)]
    torch.testing.assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=1e-4, atol=0)
    assert curves[1][-1] < curves[1][0]


@pytest.mark.stress
def test_ten_thousand_steps_do_not_drift() -> None:
    """float32 of the cpu backend against float64 of the reference, to the end of a training."""
    actual, expected = Curve("cpu"), Curve("reference", torch.float64)
    for step in range(10_000):
        losses = actual.step(), expected.step()
        if step % 500 == 499:
            assert losses[0] == pytest.approx(losses[1], rel=1e-5), step
    for a, e in zip(actual.weights, expected.weights, strict=True):
        difference = (a.detach().double() - e.detach()).abs().max()
        assert difference < 1e-4 * e.detach().abs().max()
