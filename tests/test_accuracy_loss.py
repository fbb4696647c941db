"""The rule of accuracy for the loss and its gradients: every shape, dtype and instruction set."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from three_ways import LossOptions, judge, loss_step, true_loss_step

from grainrank import DenseLevels, LevelSource
from grainrank.testing import DTYPES, SHAPES, Inputs, Shape, make_dense_levels, make_inputs

CASES = [pytest.param(s, d, id=s.id(d)) for s in SHAPES for d in DTYPES.values()]
RULES = [(p, n) for p in ("exact", "at_least") for n in ("lower", "unrelated")]


def draws(shape: Shape) -> int:
    """The results that are scalars need many, see `grainrank.testing`."""
    pairs = shape.N * shape.M
    return 96 if pairs < 100 else 32 if pairs < 10_000 else 8 if pairs < 100_000 else 5


def batch(shape: Shape, dtype: torch.dtype, seed: int, dense: int) -> tuple[Inputs, LevelSource]:
    inputs = make_inputs(shape, dtype, seed=seed)
    if dense:
        return inputs, DenseLevels(make_dense_levels(shape, dense, seed=seed), dense)
    return inputs, inputs.levels


@functools.lru_cache(maxsize=4)
def evidence(shape: Shape, dtype: torch.dtype, options: LossOptions, dense: int) -> Any:
    """Batches, what the reference makes of them, and the truth: once for all backends."""
    batches = [batch(shape, dtype, seed, dense) for seed in range(draws(shape))]
    reference = [loss_step(*b, options, "reference", seed) for seed, b in enumerate(batches)]
    truth = [true_loss_step(*b, options, seed) for seed, b in enumerate(batches)]
    return batches, reference, truth


def check(shape: Shape, dtype: torch.dtype, options: LossOptions, dense: int = 0) -> None:
    batches, reference, truth = evidence(shape, dtype, options, dense)
    actual = [loss_step(*b, options, "cpu", seed) for seed, b in enumerate(batches)]
    for name in ("loss", "d_queries", "d_candidates", "d_scale"):
        judge(name, actual, reference, truth)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_every_shape(shape: Shape, dtype: torch.dtype, instruction_set: str) -> None:
    turn = SHAPES.index(shape)
    rules = RULES[turn % 4]
    reduction = ("mean", "none")[(turn + list(DTYPES.values()).index(dtype)) % 2]
    normalize = turn % 3 > 0
    scale = 4.0 if normalize else 4.0 / (shape.D * (shape.K + 1))
    check(shape, dtype, LossOptions(*rules, normalize, reduction, scale))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("rules", RULES, ids="-".join)
def test_every_rule(
    rules: tuple[str, str], reduction: str, dtype: torch.dtype, instruction_set: str
) -> None:
    check(Shape(65, 63, 24, 4), dtype, LossOptions(*rules, reduction=reduction))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("max_level", [1, 8, 15])
def test_dense_levels(max_level: int, dtype: torch.dtype, instruction_set: str) -> None:
    rules = RULES[max_level % 4]
    check(Shape(65, 131, 24), dtype, LossOptions(*rules), dense=max_level)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_confident_positives(dtype: torch.dtype, instruction_set: str) -> None:
    """Losses far below 1: `1 - p` of a confident positive would have no digits left."""
    check(Shape(65, 63, 24, 1), dtype, LossOptions(reduction="none", scale=60.0))
