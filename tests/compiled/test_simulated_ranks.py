"""The compiled code of the kernels of ranks, with all checks of the simulator on.

Shapes lie on both sides of the edge of a tile; the threads run in several orders.
"""

from __future__ import annotations

import pytest
import torch
from ptxsim.driver import use
from rank_sweeps import (
    INTEGERS,
    STEPS,
    TIES,
    Case,
    assert_smooth,
    exact,
    reference_exact,
    smooth,
)
from test_level_sources import integers, sources
from test_triton_ranks import COLUMNS, case, graded

from grainrank.ranks.surrogates import Surrogate
from grainrank.testing import DTYPES
from grainrank.triton_ranks import TritonRankPasses

CAPABILITIES = [80, 90]
SEEDS = [0, 1]  # orders of the threads
TILE = 2 * COLUMNS  # of float32
each_capability = pytest.mark.parametrize("capability", CAPABILITIES)
each_step = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())


def check_smooth(cases: list[Case], step: Surrogate, capability: int) -> None:
    """Ranks and gradients."""
    actual = []
    for seed, given in enumerate(cases):
        with use(capability, seed=seed):
            actual.append(smooth(given, TritonRankPasses, step))
    assert_smooth(cases, actual, step)


def check_exact(given: Case, ties: str, capability: int) -> None:
    expected = reference_exact(given, ties)
    for seed in SEEDS:
        with use(capability, seed=seed):
            actual = exact(given, TritonRankPasses, ties)
        for name in INTEGERS[:-1]:
            assert torch.equal(actual[name], expected[name]), name
        assert torch.equal(actual["above"], expected["above"])


def few_values(n: int, m: int, dtype: torch.dtype = torch.float32) -> Case:
    """Dot products that are exact, with many ties."""
    q, c = integers(-1, 2, n, 4, seed=1).to(dtype) / 2, integers(-1, 2, m, 4, seed=2).to(dtype)
    return Case(q, c, graded(n, m), normalize=False)


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("m", [TILE - 1, TILE, TILE + 1])
def test_exact(ties: str, m: int) -> None:
    check_exact(few_values(5, m), ties, 80)


@each_capability
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_exact_in_every_dtype(dtype: str, capability: int) -> None:
    check_exact(few_values(33, 65, DTYPES[dtype]), "first", capability)


@each_step
@each_capability
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_smooth(dtype: str, step: Surrogate, capability: int) -> None:
    cases = [case(17, 65, DTYPES[dtype], seed=seed) for seed in (*SEEDS, 2)]
    check_smooth(cases, step, capability)


@each_step
@pytest.mark.parametrize("m", [TILE - 1, TILE, TILE + 1])
def test_edges(m: int, step: Surrogate) -> None:
    check_smooth([case(3, m, torch.float32, seed=seed) for seed in SEEDS], step, 80)


@pytest.mark.parametrize("memory", [0, 5])
def test_dot_products_and_many_levels(memory: int) -> None:
    levels = graded(5, 70, 15, positives=9)
    given = case(5, 70, torch.float32, levels)
    given = Case(given.queries / 8, given.candidates / 8, levels, False, memory)
    check_smooth([given], STEPS["upper_bound"], 90)


@pytest.mark.parametrize("name", list(sources(2, 2)))
def test_level_source(name: str) -> None:
    given = case(33, 65, torch.bfloat16, sources(33, 65)[name])
    with use(80, seed=1):
        actual = exact(given, TritonRankPasses, "first")
    expected = reference_exact(given, "first")
    for field in INTEGERS[:-1]:
        assert torch.equal(actual[field], expected[field]), field


@each_step
def test_gradients_over_the_similarities_of_sources(step: Surrogate) -> None:
    for name in ("prefix", "sparse", "exclude twice"):
        check_smooth([case(9, 33, torch.float32, sources(9, 33)[name])], step, 80)


def test_false_negative_margin() -> None:
    n, m = 9, 33
    curated = torch.arange(n) % 5, torch.arange(m) % 5
    levels = graded(n, m).false_negative_margin(0.3, curated=curated)
    check_smooth([case(n, m, torch.float32, levels)], STEPS["upper_bound"], 80)


@each_step
def test_no_positives(step: Surrogate) -> None:
    levels = graded(1, 7, positives=0)
    check_smooth([case(1, 7, torch.float32, levels)], step, 80)
