"""Same inputs, same bits: run by run, for any number of threads, for every instruction set."""

from __future__ import annotations

import pytest
import torch
from three_ways import LossOptions, Results, loss_step, table_step, table_upstream
from torch import Tensor

from grainrank.table_sets import TableGradientSet
from grainrank.testing import DTYPES, Shape, make_inputs

pytest.importorskip("grainrank.cpu")

from row_block import block, run_gradients_, run_tables, source

from grainrank.cpu import instruction_sets

SHAPE = Shape(150, 333, 48, 3)


def step(dtype: torch.dtype, reduction: str, backend: str) -> Results:
    inputs = make_inputs(SHAPE, dtype)
    return loss_step(inputs, inputs.levels, LossOptions(reduction=reduction), backend, 0)


def same(a: Results, b: Results) -> None:
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_loss_twice(reduction: str, dtype: torch.dtype, backend: str) -> None:
    first = step(dtype, reduction, backend)
    for _ in range(3):
        same(first, step(dtype, reduction, backend))


def test_tables_twice(backend: str) -> None:
    inputs = make_inputs(SHAPE)
    d_tables = table_upstream(torch.ones(150, 4), 0)
    runs = [table_step(inputs, inputs.levels, LossOptions(), backend, d_tables) for _ in range(3)]
    same(runs[0], runs[1])
    same(runs[0], runs[2])


def passes(threads: int, name: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    torch.set_num_threads(threads)
    levels, s = source("dense8", 2500), block(2500, dtype)
    got = run_tables(s, levels, name)
    g = s.clone()
    d = TableGradientSet(*(torch.ones_like(got.lse) for _ in range(3)))
    run_gradients_(g, levels, got, d, name)
    return *(t for t in got if t is not None), g


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_threads_change_no_bit_of_the_passes(dtype: torch.dtype, instruction_set: str) -> None:
    one = passes(1, instruction_set, dtype)
    for threads in (2, 3, 8):
        for a, b in zip(one, passes(threads, instruction_set, dtype), strict=True):
            assert torch.equal(a, b)


def test_instruction_sets_agree_where_they_must() -> None:
    """Counts, extremes and their columns are exact, so they are the same everywhere."""
    names = instruction_sets()
    levels, s = source("prefix", 2500), block(2500, torch.float32, ties=True)
    first, *others = (run_tables(s, levels, name) for name in names)
    for other in others:
        for name in ("count", "highest", "lowest", "highest_at", "lowest_at"):
            assert torch.equal(getattr(first, name), getattr(other, name)), name
        for name in ("lse", "neg_lse", "total"):
            torch.testing.assert_close(getattr(first, name), getattr(other, name))
