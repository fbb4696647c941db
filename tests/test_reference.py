"""The reference against the definition: levels, tables, loss and gradients, in float64."""

from __future__ import annotations

import itertools
import math

import definition
import numpy as np
import pytest
import torch
from definition import wide
from three_ways import LossOptions, accumulation, loss_step, table_step, table_upstream, upstream

from grainrank import DenseLevels, GrainKeys, LevelSource, multi_level_ranking_loss, reference
from grainrank.testing import Inputs, Shape, make_dense_levels, make_inputs

RULES = list(itertools.product(("exact", "at_least"), ("lower", "unrelated")))
SHAPE = Shape(9, 14, 6, 3)
CLOSE = {"rtol": 1e-12, "atol": 1e-13}


def batch(kind: str) -> tuple[Inputs, LevelSource]:
    inputs = make_inputs(SHAPE, torch.float64, seed=3, unknown=0.3)
    if kind == "keys":
        return inputs, inputs.levels
    return inputs, DenseLevels(make_dense_levels(SHAPE, 5, seed=3), 5)


def levels_and_logits(
    inputs: Inputs, levels: LevelSource, options: LossOptions
) -> tuple[definition.Array, definition.Array]:
    level = levels.block(0, *(len(x) for x in inputs[:2])).numpy()
    q, c = (definition.unit(wide(x), options.normalize) for x in inputs[:2])
    return level, wide(options.scale) * (q @ c.T)


@pytest.mark.parametrize("match", ["prefix", "count"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_levels_of_keys(match: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    low = 0 if dtype == torch.uint8 else -2
    q = torch.randint(low, 3, (40, 4), generator=generator).to(dtype)
    c = torch.cat([q[::2], torch.randint(low, 3, (70, 4), generator=generator).to(dtype)])
    expected = torch.from_numpy(definition.levels(q, c, match))
    assert set(expected.unique().tolist()) == {0, 1, 2, 3, 4}
    assert torch.equal(GrainKeys(q, c, match=match).block(0, 40, 90), expected)  # type: ignore[arg-type]
    assert torch.equal(GrainKeys(q, c, match=match).block(5, 9, 90), expected[5:9])  # type: ignore[arg-type]


def test_tables_of_a_row_written_by_hand() -> None:
    """log(e^1 + e^3), and so on, with plain floats; ties go to the first column."""
    z = torch.tensor([[1.0, 3.0, 3.0, -2.0, 50.0, 0.5]], dtype=torch.float64)
    level = torch.tensor([[0, 2, 2, 2, -1, 0]], dtype=torch.int8)
    got = reference.level_tables(z, level, 3)
    e = math.exp
    expected = {
        "lse": [math.log(e(1) + e(0.5)), -1e30, math.log(2 * e(3) + e(-2)), -1e30],
        "neg_lse": [-1e30, -1e30, math.log(2 * e(-3) + e(2)), -1e30],
        "total": [1.5, 0, 4, 0],
        "count": [2, 0, 3, 0],
        "highest": [1, -1e30, 3, -1e30],
        "lowest": [0.5, 1e30, -2, 1e30],
        "highest_at": [0, -1, 1, -1],
        "lowest_at": [5, -1, 3, -1],
    }
    for name, row in expected.items():
        assert getattr(got, name)[0].tolist() == pytest.approx(row, rel=1e-14), name


@pytest.mark.parametrize("kind", ["keys", "dense"])
def test_tables(kind: str) -> None:
    options = LossOptions()
    inputs, levels = batch(kind)
    level, z = levels_and_logits(inputs, levels, options)
    # Ties of every kind: logits on a grid.
    z = np.round(z)
    expected = definition.tables(z, level, levels.max_level)
    got = reference.level_tables(definition.narrow(z)[0], torch.from_numpy(level), levels.max_level)
    assert (expected["count"] == 0).any()
    for name in definition.NAMES:
        value = torch.from_numpy(expected[name].astype(np.float64))
        torch.testing.assert_close(getattr(got, name).double(), value, **CLOSE, msg=name)


@pytest.mark.parametrize("kind", ["keys", "dense"])
@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "dot"])
@pytest.mark.parametrize("rules", RULES, ids="-".join)
def test_loss_and_gradients(rules: tuple[str, str], normalize: bool, kind: str) -> None:
    options = LossOptions(*rules, normalize, "none", 8.0 if normalize else 0.5)
    inputs, levels = batch(kind)
    level, z = levels_and_logits(inputs, levels, options)
    weights = wide(0.1) + np.zeros(levels.max_level, dtype=np.longdouble)
    weights[-1] = 1
    got = loss_step(inputs, levels, options, "reference", seed=0)
    losses = definition.losses(z, level, weights, *rules)
    assert (losses > 0).any()
    torch.testing.assert_close(got["loss"], definition.narrow(losses)[0], **CLOSE)

    g = definition.loss_gradient(z, level, weights, *rules, wide(upstream(0, len(z))))
    step = definition.input_gradients(
        g, wide(inputs.queries), wide(inputs.candidates), wide(options.scale), normalize
    )
    for name, value in step.items():
        torch.testing.assert_close(got[name], definition.narrow(value)[0], **CLOSE, msg=name)


@pytest.mark.parametrize("rules", RULES, ids="-".join)
def test_gradient_by_finite_differences(rules: tuple[str, str]) -> None:
    """The definition's G is the slope of the definition's loss: 80-bit central differences."""
    options = LossOptions(*rules)
    inputs, levels = batch("dense")
    level, z = levels_and_logits(inputs, levels, options)
    weights = wide(torch.rand(5, generator=torch.Generator().manual_seed(1)))
    ones = np.ones(len(z), dtype=np.longdouble)
    g = definition.loss_gradient(z, level, weights, *rules, ones)
    step = np.longdouble(1e-5)
    for i, j in itertools.product(range(len(z)), range(0, z.shape[1], 3)):
        d = np.zeros_like(z)
        d[i, j] = step
        above = definition.losses(z + d, level, weights, *rules).sum()
        below = definition.losses(z - d, level, weights, *rules).sum()
        assert float((above - below) / (2 * step)) == pytest.approx(float(g[i, j]), abs=1e-9)


def test_gradient_of_the_tables_by_finite_differences() -> None:
    inputs, levels = batch("dense")
    level, z = levels_and_logits(inputs, levels, LossOptions())
    count = torch.from_numpy(definition.tables(z, level, 5)["count"])
    d_tables = table_upstream(count, 0)
    d_tables["neg_lse"][:, 0] = 0
    factors = {name: wide(d) for name, d in d_tables.items()}
    g = definition.table_gradient(z, level, factors)

    def value(z: definition.Array) -> definition.Array:
        tables = definition.tables(z, level, 5)
        return np.sum([(tables[name] * d).sum() for name, d in factors.items()])

    step = np.longdouble(1e-5)
    for i, j in itertools.product(range(len(z)), range(0, z.shape[1], 3)):
        d = np.zeros_like(z)
        d[i, j] = step
        slope = (value(z + d) - value(z - d)) / (2 * step)
        assert float(slope) == pytest.approx(float(g[i, j]), abs=1e-8)
    options = LossOptions()
    got = table_step(inputs, levels, options, "reference", d_tables)
    exact = definition.input_gradients(
        g, wide(inputs[0]), wide(inputs[1]), wide(options.scale), True
    )
    for name, expected in exact.items():
        torch.testing.assert_close(got[name], definition.narrow(expected)[0], **CLOSE, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_short_dtypes_of_the_reference(dtype: torch.dtype) -> None:
    """The reference judges others in these dtypes, so it must itself be near float64."""
    inputs = make_inputs(Shape(65, 63, 24, 4), dtype)
    exact = inputs.to(torch.float64)
    options = LossOptions(reduction="none")
    got = loss_step(inputs, inputs.levels, options, "reference", 0)
    truth = loss_step(exact, inputs.levels, options, "reference", 0)
    assert got["loss"].dtype == accumulation(dtype)
    assert got["d_queries"].dtype == got["d_candidates"].dtype == dtype
    for name, value in truth.items():
        eps = torch.finfo(got[name].dtype).eps
        worst = (got[name].double() - value).abs().max() / value.abs().max()
        # A logit up to 8 in its own dtype carries 8 roundings into each exponential.
        assert float(worst) < 50 * eps, name


def test_default_level_weights() -> None:
    """1 for the finest level, 0.1 for the others."""
    inputs, levels = batch("keys")
    default = multi_level_ranking_loss(*inputs[:2], levels, temperature=0.1, backend="reference")
    given = multi_level_ranking_loss(
        *inputs[:2], levels, temperature=0.1, level_weights=[0.1, 0.1, 1.0], backend="reference"
    )
    assert default == given
