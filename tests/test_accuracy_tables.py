"""The rule of accuracy for the tables of `level_statistics` and the gradients through them."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from three_ways import (
    DIFFERENTIABLE,
    LossOptions,
    Results,
    judge,
    table_step,
    table_upstream,
    true_table_step,
)
from torch import Tensor

from grainrank import DenseLevels, LevelSource
from grainrank.reference import normalize
from grainrank.testing import DTYPES, SHAPES, Inputs, Shape, make_dense_levels, make_inputs

CASES = [pytest.param(s, d, id=s.id(d)) for s in SHAPES for d in DTYPES.values()]


def draws(shape: Shape) -> int:
    """A scalar is a single sample of each draw: with 4, one in 600 sound results broke the rule."""
    return 8 if shape.N * shape.M < 100_000 else 2


def exact_logits(inputs: Inputs, options: LossOptions) -> Tensor:
    """In float64."""
    q, c = inputs.queries.double(), inputs.candidates.double()
    if options.normalize:
        q, c = normalize(q)[0], normalize(c)[0]
    return options.scale * (q @ c.T)


def clear(z: Tensor, level: Tensor, max_level: int) -> Tensor:
    """[N, L + 1]: the highest logit stands clear of the second, so that no dtype mistakes it."""
    out = []
    for k in range(max_level + 1):
        of_level = torch.where(level == k, z, -torch.inf)
        two = torch.nn.functional.pad(of_level, (0, 1), value=-torch.inf).topk(2, dim=1).values
        out.append(two[:, 0] - two[:, 1].clamp_min(-1e30) > 1e-3)
    return torch.stack(out, dim=1)


def d_tables(
    inputs: Inputs, levels: LevelSource, options: LossOptions, seed: int
) -> tuple[Results, Tensor]:
    z = exact_logits(inputs, options)
    level = levels.block(0, *z.shape)
    count = torch.stack([(level == k).sum(dim=1) for k in range(levels.max_level + 1)], dim=1)
    upstream = table_upstream(count, seed)
    upstream["highest"] *= clear(z, level, levels.max_level)
    upstream["lowest"] *= clear(-z, level, levels.max_level)
    upstream["neg_lse"][:, 0] = 0
    return upstream, z


@functools.lru_cache(maxsize=4)
def evidence(shape: Shape, dtype: torch.dtype, options: LossOptions, dense: int) -> Any:
    batches, upstreams, exact, reference, truth = [], [], [], [], []
    for seed in range(draws(shape)):
        inputs = make_inputs(shape, dtype, seed=seed)
        levels: LevelSource = inputs.levels
        if dense:
            levels = DenseLevels(make_dense_levels(shape, dense, seed=seed), dense)
        upstream, z = d_tables(inputs, levels, options, seed)
        batches.append((inputs, levels))
        upstreams.append(upstream)
        exact.append(z)
        reference.append(table_step(inputs, levels, options, "reference", upstream))
        truth.append(true_table_step(inputs, levels, options, upstream))
    return batches, upstreams, exact, reference, truth


def at(z: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """The logits of the pairs that `highest_at` or `lowest_at` names."""
    return z.gather(1, columns.clamp_min(0)).to(dtype)


def check(shape: Shape, dtype: torch.dtype, options: LossOptions, dense: int = 0) -> None:
    batches, upstreams, exact, reference, truth = evidence(shape, dtype, options, dense)
    actual = [
        table_step(*batch, options, "cpu", upstream)
        for batch, upstream in zip(batches, upstreams, strict=True)
    ]
    there = []
    for a, t in zip(actual, truth, strict=True):
        count = t["count"][0]
        assert torch.equal(a["count"].double(), count.double())
        there.append(count > 0)
        empty = {"lse": -1e30, "neg_lse": -1e30, "highest": -1e30, "lowest": 1e30, "total": 0}
        for name, value in {**empty, "highest_at": -1, "lowest_at": -1}.items():
            expected = torch.tensor(value, dtype=a[name].dtype)
            assert (a[name][count == 0] == expected).all(), name
        assert (a["neg_lse"][:, 0] == torch.tensor(-1e30, dtype=a["lse"].dtype)).all()
    positive = [here & (torch.arange(here.shape[1]) > 0) for here in there]
    for name in DIFFERENTIABLE:
        judge(name, actual, reference, truth, positive if name == "neg_lse" else there)
    for name in ("d_queries", "d_candidates", "d_scale"):
        judge(name, actual, reference, truth)
    for name in ("highest", "lowest"):
        # Not the column itself: two logits may be equal in one dtype and differ in another.
        for results in (actual, reference):
            for result, z in zip(results, exact, strict=True):
                result[f"z_{name}"] = at(z, result[f"{name}_at"], result["lse"].dtype)
        renamed = [{f"z_{name}": t[name]} for t in truth]
        judge(f"z_{name}", actual, reference, renamed, there)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_every_shape(shape: Shape, dtype: torch.dtype, instruction_set: str) -> None:
    normalize = SHAPES.index(shape) % 3 > 0
    scale = 4.0 if normalize else 4.0 / (shape.D * (shape.K + 1))
    check(shape, dtype, LossOptions(normalize=normalize, scale=scale))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("max_level", [1, 8, 15])
def test_dense_levels(max_level: int, dtype: torch.dtype, instruction_set: str) -> None:
    check(Shape(65, 131, 24), dtype, LossOptions(), dense=max_level)
