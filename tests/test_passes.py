"""The C++ passes over one row block, by themselves: chunk borders, strides, ties, level kinds."""

from __future__ import annotations

import definition
import pytest
import torch
from definition import wide
from three_ways import DIFFERENTIABLE, upstream
from torch import Tensor

from grainrank import reference
from grainrank.table_sets import TableGradientSet
from grainrank.testing import Draw, assert_accurate

pytest.importorskip("grainrank.cpu")

from row_block import ROWS, SCALE, START, N, block, run_gradients_, run_tables, source

COLUMNS = [1, 7, 15, 16, 17, 65, 1003, 1023, 1024, 1025, 2049, 2500]
KINDS = ["diagonal", "prefix", "count", "dense2", "dense8", "dense15", "prefix+ids", "diagonal+ids"]


def logits(s: Tensor) -> tuple[Tensor, definition.Array]:
    """In the dtype of s, and in 80 bits."""
    return s * SCALE, wide(s) * wide(SCALE)


def draw(name: str, actual: Tensor, expected: Tensor, truth: definition.Array) -> None:
    high, low = definition.narrow(truth)
    assert_accurate(name, Draw(actual, expected, high, low))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", COLUMNS, ids=lambda m: f"M{m}")
def test_tables_and_gradients(m: int, kind: str, dtype: torch.dtype, instruction_set: str) -> None:
    if m < N and kind.startswith("diagonal"):
        m += N
    levels = source(kind, m)
    level = levels.block(START, START + ROWS, m)
    s = block(m, dtype)
    z, exact = logits(s)
    truth = definition.tables(exact, level.numpy(), levels.max_level)
    expected = reference.level_tables(z, level, levels.max_level)
    got = run_tables(s, levels, instruction_set)
    there = got.count > 0
    for name in ("count", "highest_at", "lowest_at"):
        assert getattr(got, name).tolist() == truth[name].tolist(), name
    for name in DIFFERENTIABLE:
        here = there.clone()
        if name == "neg_lse":
            here[:, 0] = False
        actual = getattr(got, name)
        assert (actual[~here] == getattr(expected, name)[~here]).all(), name
        draw(name, actual[here], getattr(expected, name)[here], truth[name][here.numpy()])
    short = run_tables(s, levels, instruction_set, full=False)
    assert torch.equal(short.count, got.count)
    for name in ("lse", "total"):
        actual = getattr(short, name)[there]
        draw(name, actual, getattr(expected, name)[there], truth[name][there.numpy()])

    every = {name: upstream(i, *got.lse.shape) * there for i, name in enumerate(DIFFERENTIABLE)}
    every["neg_lse"][:, 0] = 0
    for given in (["lse"], ["lse", "total"], ["lse", "neg_lse"], ["lse", "neg_lse", "total"]):
        d = {name: every[name].to(dtype) for name in given}
        g = s.clone(memory_format=torch.preserve_format)
        run_gradients_(g, levels, got, TableGradientSet(**d), instruction_set)
        zero = torch.zeros_like(every["lse"])
        factors = {name: wide(d.get(name, zero)) for name in DIFFERENTIABLE}
        draw(
            "+".join(given),
            g,
            reference.pair_gradient(z, level, expected, reference.TableGradients(**d)),
            definition.table_gradient(exact, level.numpy(), factors),
        )
        assert (g[level < 0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("m", [17, 1025, 2500], ids=lambda m: f"M{m}")
def test_of_equal_logits_the_first_column_counts(
    m: int, dtype: torch.dtype, instruction_set: str
) -> None:
    levels = source("dense2", m)
    s = block(m, dtype, ties=True)
    truth = definition.tables(logits(s)[1], levels.block(START, START + ROWS, m).numpy(), 2)
    got = run_tables(s, levels, instruction_set)
    assert got.highest_at is not None
    assert got.lowest_at is not None
    assert got.highest_at.tolist() == truth["highest_at"].tolist()
    assert got.lowest_at.tolist() == truth["lowest_at"].tolist()


def test_nothing_beside_the_block_is_touched(instruction_set: str) -> None:
    levels = source("prefix", 65)
    s = block(65, torch.float32)
    memory = s.as_strided((ROWS + 1, s.stride(0)), s.stride())
    got = run_tables(s, levels, instruction_set)
    d = TableGradientSet(*(torch.ones_like(got.lse) for _ in range(3)))
    run_gradients_(s, levels, got, d, instruction_set)
    assert s.isfinite().all()
    assert memory[:ROWS, 65:].isnan().all()
    assert memory[ROWS:].isnan().all()


@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0, 2000.0])
def test_logits_close_together_and_far_apart(spread: float, instruction_set: str) -> None:
    """Rows may change from one regime to the other between chunks."""
    m = 2500
    levels = source("dense8", m)
    level = levels.block(START, START + ROWS, m)
    s = block(m, torch.float32)
    s[1:, 1500:] *= spread
    s[2:, 300:] += spread
    s[3:, 2100:] -= 3 * spread
    z, exact = logits(s)
    truth = definition.tables(exact, level.numpy(), 8)
    expected = reference.level_tables(z, level, 8)
    for full in (True, False):
        got = run_tables(s, levels, instruction_set, full).lse
        for row in range(ROWS):
            draw(f"lse of row {row}", got[row], expected.lse[row], truth["lse"][row])
