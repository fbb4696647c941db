"""Ranks of the positives in Triton, in its interpreter: what the kernels' source says.

What the compiler makes of it is tested in tests/compiled/.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from margins import each_margin
from rank_sweeps import (
    INTEGERS,
    STEPS,
    TIES,
    Case,
    Results,
    assert_smooth,
    exact,
    reference_exact,
    reference_smooth,
    smooth,
)
from test_level_sources import integers, references, sources
from torch import Tensor

from grainrank import DenseLevels, GrainKeys, LevelSource
from grainrank.ranks.surrogates import Surrogate
from grainrank.row_blocks import Block
from grainrank.testing import Shape, make_inputs

pytest.importorskip("triton", reason="Triton is not installed")
triton_passes = pytest.importorskip("grainrank.triton_passes")
triton_ranks = pytest.importorskip("grainrank.triton_ranks")
Passes: Any = triton_ranks.TritonRankPasses
COLUMNS = triton_ranks.TILE_BYTES // 8  # of a tile in float64
each_step = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())


def graded(n: int, m: int, max_level: int = 3, seed: int = 0, positives: int = 2) -> DenseLevels:
    """A tenth ignored, about as many positives in a row; row 0 has none."""
    kind = torch.rand(n, m, generator=torch.Generator().manual_seed(seed))
    levels = torch.where(kind < 0.1, -1, 0)
    share = min(0.5, positives / m)
    levels = torch.where(kind > 1 - share, integers(1, max_level + 1, n, m, seed=seed), levels)
    if n > 1:
        levels[0] = levels[0].clamp_max(0)
    return DenseLevels(levels, max_level)


def case(
    n: int,
    m: int,
    dtype: torch.dtype = torch.float64,
    levels: LevelSource | None = None,
    seed: int = 0,
    **options: Any,
) -> Case:
    inputs = make_inputs(Shape(n, m, 24, 3), dtype, seed=seed)
    return Case(*inputs[:2], levels or graded(n, m, seed=seed), **options)


def check(given: Case, step: Surrogate, ties: str = "first") -> None:
    """Exact and smooth ranks and gradients, in float64."""
    pairs = [
        (exact(given, Passes, ties), reference_exact(given, ties)),
        (smooth(given, Passes, step), reference_smooth(given, step)),
    ]
    for actual, expected in pairs:
        assert actual.keys() == expected.keys()
        for name, value in actual.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("name", list(sources(2, 2)))
def test_level_source(name: str) -> None:
    check(case(4, 11, levels=sources(4, 11)[name]), STEPS["upper_bound"])


@pytest.mark.parametrize("name", ["sparse", "bands of rows", "exclude"])
def test_transposed_level_source(name: str) -> None:
    check(case(11, 4, levels=sources(4, 11)[name].transposed()), STEPS["sigmoid"])


@each_margin
def test_false_negative_margin(options: dict[str, Any]) -> None:
    n, m = 4, 11
    given = dict(options)
    if given.get("curated"):
        given["curated"] = torch.arange(n) % 3, torch.arange(m) % 3
    if given.get("reference"):
        given["reference"] = references(n, m)
    margin = case(n, m, levels=graded(n, m).false_negative_margin(0.3, **given))
    seen = exact(margin, Passes, "first")["count"]
    assert seen[:, 0].sum() < exact(case(n, m), Passes, "first")["count"][:, 0].sum()
    check(margin, STEPS["upper_bound"])


@each_step
@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "dot"])
@pytest.mark.parametrize("memory", [0, 4])
def test_memory_and_norms(normalize: bool, memory: int, step: Surrogate) -> None:
    given = case(5, 17, normalize=normalize, memory=memory)
    if not normalize:  # similarities of the size of a cosine
        given = Case(given.queries / 8, given.candidates / 8, *list(vars(given).values())[2:])
    check(given, step, "last")


def test_many_levels() -> None:
    """More than a program has registers for."""
    check(case(4, 40, levels=graded(4, 40, 15, positives=6)), STEPS["upper_bound"])


@pytest.mark.parametrize("programs", [1, 256], ids=["whole rows", "split rows"])
@pytest.mark.parametrize("m", [32, 67])
def test_tiles(m: int, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_ranks, "TILE_BYTES", 32 * 8)
    monkeypatch.setattr(triton_passes, "PROGRAMS", programs)
    check(case(3, m), STEPS["upper_bound"])


def test_blocks_of_rows_change_nothing() -> None:
    given = case(9, 65)
    row = 65 * 8 / 2**20
    several = Case(given.queries, given.candidates, given.levels, workspace_mb=3.5 * row)
    check(several, STEPS["sigmoid"])
    whole, parts = (smooth(c, Passes, STEPS["sigmoid"]) for c in (given, several))
    for name in INTEGERS:
        assert torch.equal(whole[name], parts[name]), name


@each_step
def test_no_positives(step: Surrogate) -> None:
    given = case(3, 7, levels=DenseLevels(torch.zeros(3, 7, dtype=torch.int8), 2))
    check(given, step)
    found = smooth(given, Passes, step)
    assert found["above"].shape == (0, 3)
    assert not found["d_queries"].any()


# Accuracy.

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
SHAPES = [(1, 1), (1, 7), (1, 65), (7, 1), (7, 63), (63, 7)]


def accurate(n: int, m: int, dtype: torch.dtype, step: Surrogate, draws: int) -> None:
    cases = [case(n, m, dtype, seed=seed) for seed in range(draws)]
    assert_smooth(cases, [smooth(given, Passes, step) for given in cases], step)


@each_step
# Of bfloat16 the interpreter computes with the bits; see tests/compiled/.
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_accuracy(dtype: torch.dtype, step: Surrogate) -> None:
    accurate(7, 65, dtype, step, draws=3)


@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_accuracy_of_shapes(n: int, m: int) -> None:
    accurate(n, m, torch.float32, STEPS["upper_bound"], draws=2 if n < 60 else 1)


# One block, in memory that is NaN around it.


def poisoned(values: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """The values as a part of wider rows, and these."""
    rows, columns = values.shape
    memory = torch.full((rows + 1, columns + 19), torch.nan, dtype=dtype or values.dtype)
    memory[:rows, :columns] = values
    return memory[:rows, :columns], memory


def block_of(n: int, m: int, dtype: torch.dtype, gradient: Tensor | None) -> Block:
    """Many equal similarities, also of different products with their factors."""
    s, _ = poisoned(integers(-2, 3, n, m, seed=m).to(dtype) / 4)
    rows, columns = (2.0 ** integers(-1, 2, size, seed=size).to(dtype) for size in (n, m))
    empty = s.new_zeros(n, 1), s.new_zeros(m, 1)
    return Block(s, gradient, *empty, 0, 0, rows / 3, columns / 3, None)


def similarities_of(block: Block) -> Tensor:
    assert block.similarities is not None
    assert block.row_factors is not None
    assert block.column_factors is not None
    return block.similarities * (block.row_factors[:, None] * block.column_factors)


def passes_of(n: int, m: int, dtype: torch.dtype, levels: LevelSource) -> Any:
    """Of a batch whose embeddings nobody reads."""
    zeros = torch.zeros(n, 1, dtype=dtype), torch.zeros(m, 1, dtype=dtype)
    return Passes(Case(*zeros, levels).batch())


def above(s: list[float], j: int, p: int, ties: str) -> bool:
    if s[j] != s[p]:
        return s[j] > s[p]
    return {"first": j < p, "last": j > p, "optimistic": False, "pessimistic": True}[ties]


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 63), (3, 65), (1, 2 * COLUMNS + 7)])
def test_ties(n: int, m: int, ties: str) -> None:
    source, dtype = graded(n, m, seed=m, positives=3), torch.float32
    block, passes = block_of(n, m, dtype, None), passes_of(n, m, dtype, source)
    levels, count = passes.block_levels(block)
    assert levels.dtype == torch.int8
    assert torch.equal(levels.long(), source.block(0, n, m).long())
    positives = passes.positives(block, levels, count)
    found = passes.exact_ranks(block, levels, positives, ties)
    s, y = similarities_of(block).tolist(), levels.tolist()
    expected = [
        [sum(y[r][j] == k and j != p and above(s[r], j, p, ties) for j in range(m))
         for k in range(4)]
        for r in range(n) for p in range(m) if y[r][p] > 0
    ]  # fmt: skip
    assert found.dtype == torch.int64
    assert found.tolist() == expected


def slow(s: Tensor, y: Tensor, step: Surrogate, d: Tensor) -> Results:
    """Sums of the steps and slopes, and the gradient of the sum of `d * above`; by autograd."""
    s = s.detach().requires_grad_()
    sums = []
    for r, p in (y > 0).nonzero().tolist():
        x = s[r] - s[r, p]
        here = torch.stack([(y[r] == k) & (torch.arange(len(x)) != p) for k in range(4)])
        below = y[r] < y[r, p]
        terms = step.value(x.detach(), below), step.slope(x.detach(), below), (x >= 0).double()
        sums.append([torch.where(here, t, 0.0).sum(dim=1) for t in terms])
        weight = torch.where(here, d[len(sums) - 1][:, None], 0.0).sum(dim=0)
        # A step whose gradient is the slope: that of the surrogate may be a jump.
        (weight * terms[1] * x).sum().backward()
    values, slopes, at_least = (torch.stack(t) for t in zip(*sums, strict=True))
    assert s.grad is not None
    return {"above": values, "slope": slopes, "at_least": at_least.long(), "gradient": s.grad}


@each_step
@pytest.mark.parametrize("over", [True, False], ids=["over the similarities", "beside them"])
@pytest.mark.parametrize(("n", "m"), [(7, 63), (2, COLUMNS + 5)])
def test_one_block(n: int, m: int, over: bool, step: Surrogate) -> None:
    """Equal similarities, and differences on both sides of every edge of the steps."""
    dtype = torch.float64
    source = graded(n, m, seed=m, positives=12)
    out, memory = poisoned(torch.zeros(n, m), torch.float64)
    block, passes = block_of(n, m, dtype, out), passes_of(n, m, dtype, source)
    block = block._replace(unit=torch.full((1,), 4.0, dtype=dtype))
    similarities = similarities_of(block)
    if over:
        block = block._replace(gradient=block.similarities)
    levels, count = passes.block_levels(block)
    positives = passes.positives(block, levels, count)
    sums = passes.smooth_ranks(block, levels, positives, step)
    d = torch.randn(sums.above.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    expected = slow(similarities, levels, step, d)
    for name in ("above", "slope", "at_least"):
        torch.testing.assert_close(getattr(sums, name), expected[name], rtol=1e-12, atol=1e-12)
    passes.rank_gradient_(block, levels, positives, step, d, (d * sums.slope).sum(dim=1))
    assert block.row_factors is not None
    assert block.column_factors is not None
    factors = block.row_factors[:, None] * block.column_factors
    # In the unit, and no larger than float16 can be.
    g = (4.0 * expected["gradient"] * factors).clamp(-65504, 65504)
    torch.testing.assert_close(block.gradient, g, rtol=1e-12, atol=1e-11)
    assert memory[:, m:].isnan().all()
    assert memory[n:].isnan().all()


@each_step
def test_a_step_repeats_bit_by_bit(step: Surrogate) -> None:
    given = case(4, 65, torch.float32)
    first, second = (smooth(given, Passes, step) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_a_fused_product_is_refused() -> None:
    batch = case(3, 7, torch.float32).batch()._replace(product="fused")
    with pytest.raises(ValueError, match=r'product must be "auto" or "vendor" for ranks'):
        Passes(batch)


def test_positives_of_grain_keys_are_what_they_share() -> None:
    """By hand: keys that agree to the first, second and third grain."""
    keys = GrainKeys(torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, 2], [0, 1, 0], [3, 1, 2]]))
    q, c = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    found = exact(Case(q, c, keys), Passes, "first")
    assert found["indices"].tolist() == [0, 1]
    assert found["level"].tolist() == [3, 2]
    assert found["above"].tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]
