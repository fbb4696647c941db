"""Ranks of the positives by the C++ passes, on every instruction set, against the reference."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from margins import each_margin
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
from test_level_sources import integers, references, sources
from torch import Tensor
from torch.nn.functional import normalize

from grainrank import DenseLevels, LevelSource
from grainrank.ranks.surrogates import Surrogate
from grainrank.testing import Shape, make_inputs

cpu_ranks = pytest.importorskip("grainrank.cpu_ranks")

CHUNK = 1024  # columns of csrc/level_row.h
each_step = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
each_tie = pytest.mark.parametrize("ties", TIES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
Make = Callable[..., Any]


@pytest.fixture
def make(instruction_set: str) -> Make:
    return functools.partial(cpu_ranks.CpuRankPasses, instruction_set=instruction_set)


def graded(n: int, m: int, max_level: int = 3, share: float = 0.1, seed: int = 0) -> DenseLevels:
    """A tenth ignored, a share positive; row 0 has no positive, row 1 nothing else."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.rand(n, m, generator=generator)
    level = torch.randint(1, max_level + 1, (n, m), generator=generator)
    levels = torch.where(kind > 1 - share, level, torch.where(kind < 0.1, -1, 0))
    if n > 2:
        levels[0] = levels[0].clamp_max(0)
        levels[1] = level[1]
    return DenseLevels(levels, max_level)


def case(
    n: int, m: int, dtype: torch.dtype, levels: LevelSource | None = None, **options: Any
) -> Case:
    inputs = make_inputs(Shape(n, m, 24, 3), dtype, seed=n)
    return Case(*inputs[:2], levels or graded(n, m), **options)


def tied(n: int, m: int, dtype: torch.dtype, share: float) -> Case:
    """Dot products that are exact, of few values."""
    q, c = integers(-1, 2, n, 6, seed=1).to(dtype) / 2, integers(-1, 2, m, 6, seed=2).to(dtype)
    return Case(q, c, graded(n, m, share=share), normalize=False)


@each_tie
@each_dtype
@pytest.mark.parametrize("share", [0.01, 0.5], ids=["few", "many"])
@pytest.mark.parametrize("m", [1, 7, 63, 64, 65, CHUNK, CHUNK + 1, 2 * CHUNK + 33])
def test_exact_ranks_with_ties(
    m: int, share: float, dtype: torch.dtype, ties: str, make: Make
) -> None:
    given = tied(5, m, dtype, share)
    found, expected = exact(given, make, ties), reference_exact(given, ties)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e12])
@each_dtype
def test_exact_ranks_of_similarities_of_any_size(
    scale: float, dtype: torch.dtype, make: Make
) -> None:
    """A positive far from all others leaves these a single bucket; equal ones a range of 0."""
    q = torch.ones(4, 1, dtype=dtype)
    c = torch.randn(3000, 1, generator=torch.Generator().manual_seed(0), dtype=dtype)
    c[0], c[1] = 1e6, -1e6
    given = Case(q * scale, c, graded(4, 3000), normalize=False)
    only_equal = Case(q * scale, torch.ones_like(c), graded(4, 3000), normalize=False)
    for chosen in (given, only_equal):
        found, expected = exact(chosen, make, "first"), reference_exact(chosen, "first")
        assert torch.equal(found["above"], expected["above"])


@each_tie
@each_dtype
def test_equal_embeddings_are_ties_wherever_they_stand(
    dtype: torch.dtype, ties: str, make: Make
) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(27, 37, generator=generator, dtype=dtype)
    distinct = torch.randn(5, 37, generator=generator, dtype=dtype)
    member = torch.randint(0, 5, (1500,), generator=generator)
    given = Case(q, distinct[member], graded(27, 1500, share=0.01))
    found = exact(given, make, ties)
    # Gathered, not multiplied: equal ones have equal bits.
    unit_q, unit_distinct = (normalize(x.double(), dim=1) for x in (q, distinct))
    s = (unit_q @ unit_distinct.T)[:, member]
    columns = found["indices"]
    row = torch.repeat_interleave(torch.arange(27), found["indptr"].diff())
    own, others = s[row, columns][:, None], s[row]
    place = torch.arange(1500)
    above_tie = {
        "first": place < columns[:, None],
        "last": place > columns[:, None],
        "optimistic": torch.zeros(1, dtype=torch.bool),
        "pessimistic": place != columns[:, None],
    }[ties]
    above = (others > own) | ((others == own) & above_tie)
    levels = given.levels.block(0, 27, 1500)[row]
    expected = torch.stack([(above & (levels == k)).sum(dim=1) for k in range(4)], dim=1)
    assert torch.equal(found["above"], expected)


def test_more_candidates_than_a_counter_holds(make: Make) -> None:
    """32,768 and more at one similarity, ignored, and below all positives."""
    number = torch.tensor([2, 70_000, 40_000, 540_000])
    c = torch.tensor([0.9, 0.5, 0.6, -0.5]).repeat_interleave(number)[:, None]
    c[0] = 0.1
    levels = torch.tensor([0, 0, -1, 0], dtype=torch.int8).repeat_interleave(number)
    levels[:2] = torch.tensor([1, 2])
    given = Case(torch.ones(1, 1), c, DenseLevels(levels[None], 2), normalize=False)
    above = exact(given, make, "first")["above"]
    assert above.tolist() == [[70_000, 0, 1], [0, 0, 0]]


def test_exact_ranks_of_similarities_that_overflow(make: Make) -> None:
    q = torch.tensor([[1e30], [-1e30]])
    c = torch.tensor([[1e30], [2.0], [-1e30], [1e20], [0.0], [1e10], [-3.0]])
    given = Case(q, c, DenseLevels(torch.tensor([[1, 0, 0, 2, 1, 0, 2]] * 2)), normalize=False)
    for ties in TIES:
        assert torch.equal(exact(given, make, ties)["above"], reference_exact(given, ties)["above"])


@each_step
@each_dtype
@pytest.mark.parametrize("m", [1, 7, 65, CHUNK + 1, 2 * CHUNK + 33])
def test_smooth_ranks_and_gradients(
    m: int, dtype: torch.dtype, step: Surrogate, make: Make
) -> None:
    cases = [case(n, m, dtype) for n in (5, 6, 7)]
    assert_smooth(cases, [smooth(given, make, step) for given in cases], step)


@each_step
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision(dtype: torch.dtype, step: Surrogate, make: Make) -> None:
    cases = [case(n, 70, dtype) for n in (5, 6, 7)]
    assert_smooth(cases, [smooth(given, make, step) for given in cases], step)


def check(given: Case, make: Make, step: Surrogate) -> None:
    """Exact and smooth ranks and gradients, in float64."""
    assert_smooth([given], [smooth(given, make, step)], step)
    found, expected = exact(given, make, "first"), reference_exact(given, "first")
    for name in ("indptr", "indices", "level", "above", "count"):
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("name", list(sources(2, 2)))
@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
def test_level_source(name: str, transposed: bool, make: Make) -> None:
    levels = sources(6, 70)[name]
    given = case(6, 70, torch.float64, levels)
    if transposed:
        given = case(70, 6, torch.float64, levels.transposed())
    check(given, make, STEPS["upper_bound"])


@each_margin
def test_false_negative_margin(options: dict[str, Any], make: Make) -> None:
    n, m = 5, 70
    given = dict(options)
    if given.get("curated"):
        given["curated"] = torch.arange(n) % 3, torch.arange(m) % 3
    if given.get("reference"):
        given["reference"] = references(n, m)
    levels = graded(n, m).false_negative_margin(0.3, **given)
    check(case(n, m, torch.float64, levels), make, STEPS["sigmoid"])


@each_step
@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "dot"])
@pytest.mark.parametrize("memory", [0, 4])
def test_memory_and_norms(normalize: bool, memory: int, step: Surrogate, make: Make) -> None:
    given = case(5, 40, torch.float64, normalize=normalize, memory=memory)
    if not normalize:  # similarities of the size of a cosine
        given = Case(given.queries / 8, given.candidates / 8, *list(vars(given).values())[2:])
    check(given, make, step)


def test_many_levels(make: Make) -> None:
    check(case(4, 300, torch.float64, graded(4, 300, 15, 0.5)), make, STEPS["upper_bound"])


@each_step
def test_blocks_of_rows_change_nothing(step: Surrogate, make: Make) -> None:
    given = case(9, 65, torch.float64)
    several = Case(given.queries, given.candidates, given.levels, workspace_mb=3.5 * 65 * 9 / 2**20)
    whole, parts = (smooth(c, make, step) for c in (given, several))
    for name in INTEGERS:
        assert torch.equal(whole[name], parts[name]), name
    check(several, make, step)


@each_step
def test_the_number_of_threads_changes_no_bit(step: Surrogate, make: Make) -> None:
    given, before = case(33, 300, torch.float32), torch.get_num_threads()
    results: list[dict[str, Tensor]] = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found = smooth(given, make, step)
            exact_found = exact(given, make, "last")
            # The products' bits are those of BLAS, which may split them anew.
            results.append({"above": exact_found["above"], "at_least": found["at_least"]})
    finally:
        torch.set_num_threads(before)
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_a_level_out_of_range_is_an_error(make: Make) -> None:
    levels = DenseLevels(torch.zeros(3, 2000, dtype=torch.int8), 2)
    levels.tensors[0][2, 1999] = 3
    given = case(3, 2000, torch.float32, levels)
    with pytest.raises(ValueError, match=r"levels must lie in -1\.\.2"):
        exact(given, make, "first")
