"""Ranks by the CUDA passes, from the embeddings, on the simulator."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiled.simulated_cuda import simulated
from test_level_sources import references, sources
from test_ranks import TIES, few_values, graded, integers
from torch import Tensor

from grainrank import DenseLevels, LevelSource
from grainrank.batch import Batch
from grainrank.ranks import positive_ranks
from grainrank.ranks.compute import smooth
from grainrank.ranks.surrogates import surrogate_of
from grainrank.testing import Draw, Shape, assert_accurate, make_inputs

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ALL_DTYPES = {**DTYPES, "fp64": torch.float64}
SEEDS = [0, 1, 2, 3]  # orders of the threads
SURROGATES = ("sigmoid", "upper_bound")
SMALL = Shape(33, 65, 24, 3)
EDGES = [Shape(1, 1, 8), Shape(7, 63, 8), Shape(63, 7, 8), Shape(65, 65, 8), Shape(2, 1025, 8)]
MARGINS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "margin": lambda n, m: {},
    "relative margin": lambda n, m: {"relative": True},
    "curated margin": lambda n, m: {"curated": (torch.arange(n) % 5, torch.arange(m) % 5)},
    "margin of a reference": lambda n, m: {"reference": references(n, m)},
}
SOURCES = [*sources(2, 2), *MARGINS]

each_surrogate = pytest.mark.parametrize("surrogate", SURROGATES)


def source_of(name: str, n: int, m: int) -> LevelSource:
    if name in MARGINS:
        return sources(n, m)["prefix"].false_negative_margin(0.05, **MARGINS[name](n, m))
    return sources(n, m)[name]


def weights(like: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator).to(like)


def smooth_step(
    q: Tensor, c: Tensor, levels: LevelSource, backend: Any, seed: int = 0, **options: Any
) -> dict[str, Tensor]:
    """Every field, and the gradients."""
    q, c = (x.clone().requires_grad_() for x in (q, c))
    ranks = positive_ranks(q, c, levels, backend=backend, **options)
    d_q, d_c = torch.autograd.grad(ranks.above, [q, c], weights(ranks.above, seed))
    fields = {name: x.detach() for name, x in ranks._asdict().items() if x is not None}
    return {**fields, "d_queries": d_q, "d_candidates": d_c}


def both(run: Callable[[Any], Any]) -> tuple[Any, Any]:
    """What a function of the backend gives for "cuda" and for the reference."""
    with simulated(80, seed=1):
        return run("cuda"), run("reference")


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Of float64: the formulas themselves."""
    for name, value in expected.items():
        if value.is_floating_point():
            scale = max(1.0, float(value.abs().max())) if value.numel() else 1.0
            torch.testing.assert_close(actual[name], value, rtol=1e-9, atol=1e-11 * scale, msg=name)
        else:
            assert torch.equal(actual[name], value), name


@each_surrogate
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("capability", [80, 90])
def test_smooth_ranks_in_the_rule(surrogate: str, dtype: str, capability: int) -> None:
    options: dict[str, Any] = {"temperature": 0.05, "surrogate": surrogate}
    draws: dict[str, list[Draw]] = {"above": [], "d_queries": [], "d_candidates": []}
    for seed in SEEDS:
        inputs = make_inputs(SMALL, DTYPES[dtype], seed=seed)
        given = inputs.queries, inputs.candidates
        levels = inputs.levels
        with simulated(capability, seed=seed):
            actual = smooth_step(*given, levels, "cuda", seed, **options)
        reference = smooth_step(*given, levels, "reference", seed, **options)
        truth = smooth_step(*(x.double() for x in given), levels, "reference", seed, **options)
        for name, draw in draws.items():
            draw.append(Draw(actual[name], reference[name], truth[name]))
        assert torch.equal(actual["at_least"], truth["at_least"])
    for name, draw in draws.items():
        assert_accurate(name, *draw)


@each_surrogate
@pytest.mark.parametrize("name", SOURCES)
def test_source(name: str, surrogate: str) -> None:
    n, m = 9, 67
    inputs = make_inputs(Shape(n, m, 12), torch.float64, seed=2)
    options: dict[str, Any] = {"temperature": 0.1, "surrogate": surrogate}
    levels = source_of(name, n, m)
    assert_same(*both(lambda b: smooth_step(*inputs[:2], levels, b, **options)))
    actual, expected = both(lambda b: positive_ranks(*inputs[:2], levels, backend=b))
    assert torch.equal(actual.above, expected.above)


@pytest.mark.parametrize("shape", EDGES, ids=lambda s: f"N{s.N}-M{s.M}")
@each_surrogate
def test_edges(shape: Shape, surrogate: str) -> None:
    inputs = make_inputs(shape, torch.float64, seed=3)
    levels = DenseLevels(integers(-1, 4, shape.N, shape.M, seed=5).clamp(max=3), 3)
    options: dict[str, Any] = {"temperature": 0.1, "surrogate": surrogate}
    assert_same(*both(lambda b: smooth_step(*inputs[:2], levels, b, **options)))


@pytest.mark.parametrize("shape", EDGES, ids=lambda s: f"N{s.N}-M{s.M}")
@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("dtype", [*DTYPES, "fp64"])
def test_exact_ranks_of_equal_similarities(dtype: str, ties: Any, shape: Shape) -> None:
    n, m = shape[:2]
    levels = DenseLevels(integers(-1, 4, n, m, seed=5), 3)
    q, c = few_values(ALL_DTYPES[dtype], n, m)
    options: dict[str, Any] = {"ties": ties, "normalize": False}
    actual, expected = both(lambda b: positive_ranks(q, c, levels, backend=b, **options))
    for name in ("indptr", "indices", "level", "similarity", "above", "count"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name


def test_several_chunks_of_one_warp(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with so many positives that the columns are not split."""
    n, m = 2, 2048 + 65
    levels = integers(0, 4, n, m, seed=5) * (integers(0, 200, n, m, seed=6) == 0)
    q, c = few_values(torch.float64, n, m)
    given = q, c, DenseLevels(levels, 3)
    with simulated(80, seed=1):
        monkeypatch.setattr("grainrank.cuda_ranks._cuda.rank_splits", lambda *_: 1)
        exact = positive_ranks(*given, ties="last", normalize=False, backend="cuda")
        smooth = smooth_step(*given, "cuda", surrogate="sigmoid", temperature=0.1)
    expected = positive_ranks(*given, ties="last", normalize=False, backend="reference")
    assert len(exact.indices) > 10
    assert torch.equal(exact.above, expected.above)
    assert_same(smooth, smooth_step(*given, "reference", surrogate="sigmoid", temperature=0.1))


@each_surrogate
@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
def test_memory(dtype: str, surrogate: str) -> None:
    """Candidates without a gradient behind the others."""
    n, m, more = 7, 30, 13
    inputs = make_inputs(Shape(n, m + more, 12), ALL_DTYPES[dtype])
    one = torch.ones((), dtype=torch.float64 if dtype == "fp64" else torch.float32)
    step = surrogate_of(surrogate, 0.1)

    def run(backend: Any) -> list[Tensor]:
        q, c = (x.clone().requires_grad_() for x in (inputs.queries, inputs.candidates[:m]))
        batch = Batch(q, c, one, inputs.levels, memory=inputs.candidates[m:])
        above = smooth(batch, backend, step).above
        return [above.detach(), *torch.autograd.grad(above, [q, c], weights(above))]

    for actual, expected in zip(*both(run), strict=True):
        eps = 1e-12 if dtype == "fp64" else torch.finfo(expected.dtype).eps
        assert (actual - expected).abs().max() <= 8 * eps * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@each_surrogate
def test_most_levels(surrogate: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(Shape(5, 70, 12), dtype, seed=3)
    levels = DenseLevels(integers(-1, 16, 5, 70, seed=1), 15)
    options: dict[str, Any] = {"temperature": 0.2, "surrogate": surrogate}
    actual, expected = both(lambda b: smooth_step(*inputs[:2], levels, b, **options))
    if dtype == torch.float64:
        assert_same(actual, expected)
    for name in ("above", "d_queries", "d_candidates"):
        error = (actual[name] - expected[name]).abs().max()
        assert error <= 1e-5 * expected[name].abs().max(), name
    actual, expected = both(lambda b: positive_ranks(*inputs[:2], levels, backend=b))
    assert torch.equal(actual.above, expected.above)


@pytest.mark.parametrize("most", [3, 0])
def test_rows_and_batches_without_positives(most: int) -> None:
    """Row 0 has negatives alone, row 1 nothing."""
    q, c = few_values(torch.float64)
    levels = DenseLevels(graded().clamp(max=most), 3)
    dot: dict[str, Any] = {"normalize": False}
    assert_same(*both(lambda b: smooth_step(q, c, levels, b, temperature=0.1, **dot)))
    actual, expected = both(lambda b: positive_ranks(q, c, levels, backend=b, **dot))
    assert torch.equal(actual.above, expected.above)


@each_surrogate
def test_several_row_blocks(surrogate: str) -> None:
    inputs = make_inputs(Shape(41, 90, 16), torch.float64)
    options: dict[str, Any] = {"temperature": 0.1, "surrogate": surrogate}
    with simulated(80, seed=1):
        steps = [
            smooth_step(*inputs[:2], inputs.levels, "cuda", workspace_mb=size, **options)
            for size in (None, 0.01)
        ]
    assert_same(*steps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["fp16", "fp32"])
def test_a_step_repeats_bit_by_bit(dtype: torch.dtype) -> None:
    """Whatever the order of the threads."""
    inputs = make_inputs(Shape(5, 2100, 24), dtype)
    results = []
    for seed in SEEDS:
        with simulated(80, seed=seed):
            results.append(smooth_step(*inputs[:2], inputs.levels, "cuda", temperature=0.1))
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name
