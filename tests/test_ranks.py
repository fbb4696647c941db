"""Ranks of the positives against slow loops from their definitions."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from grainrank import DenseLevels, GrainKeys, LevelSource, SimilarityBands, SparseLevels
from grainrank import ranks as ranks_package
from grainrank.ranks import PositiveRanks, positive_ranks

N, M, D = 9, 23, 4
TIES = ("first", "last", "optimistic", "pessimistic")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.fixture(autouse=True, params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test, with each backend of this machine."""
    name: str = request.param
    chosen = functools.partial(ranks_package.positive_ranks, backend=name)
    monkeypatch.setitem(globals(), "positive_ranks", chosen)
    return name


def integers(low: int, high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def few_values(dtype: torch.dtype = torch.float32, n: int = N, m: int = M) -> tuple[Tensor, Tensor]:
    """Embeddings whose dot products are exact in every dtype, with many ties."""
    return integers(-1, 2, n, D, seed=1).to(dtype) / 2, integers(-1, 2, m, D, seed=2).to(dtype)


def graded(seed: int = 3, lowest: int = -1, n: int = N, m: int = M) -> Tensor:
    """Levels [N, M]; row 0 is all negatives, row 1 all ignored, row 2 has no negative."""
    levels = integers(lowest, 4, n, m, seed=seed)
    levels[0], levels[1], levels[2] = 0, -1, levels[2].clamp(min=1)
    return levels


def sources(n: int = N, m: int = M) -> dict[str, LevelSource | None]:
    keys = GrainKeys(integers(-1, 3, n, 3), integers(-1, 3, m, 3, seed=1))
    dense = DenseLevels(graded(n=n, m=m), 5)  # two levels that nobody has
    qrels = {
        (i, j): int(level)
        for (i, j), level in zip(
            itertools.product(range(n), range(m)), graded(4, n=n, m=m).flatten(), strict=True
        )
        if (i + j) % 3 == 0
    }
    sparse = SparseLevels.from_qrels(range(n), range(m), qrels)
    bands = SimilarityBands(random(n, 5), random(m, 5, seed=1), [-0.4, 0.1, 0.5])
    ids = integers(0, 6, n, seed=5), integers(0, 6, m, seed=6)
    return {
        "diagonal": None,
        "prefix": keys,
        "count": GrainKeys(*keys.tensors, match="count"),
        "dense": dense,
        "sparse": sparse,
        "bands": bands,
        "exclude": keys.exclude(*ids),
        "union": bands.exclude(*ids) | sparse,
        "transposed": DenseLevels(graded(7, n=m, m=n)).transposed(),
    }


def matrix(source: LevelSource | None, n: int = N, m: int = M) -> Tensor:
    return torch.eye(n, m, dtype=torch.int64) if source is None else source.block(0, n, m).long()


def stands_above(s: list[float], j: int, p: int, ties: str) -> bool:
    if s[j] != s[p]:
        return s[j] > s[p]
    return {"first": j < p, "last": j > p, "optimistic": False, "pessimistic": True}[ties]


def slow(similarities: Tensor, levels: Tensor, size: int, ties: str) -> dict[str, list[Any]]:
    """The fields of exact ranks; `size` is L + 1."""
    out: dict[str, list[Any]] = {
        "indptr": [0],
        "indices": [],
        "level": [],
        "above": [],
        "count": [],
    }
    for s, y in zip(similarities.tolist(), levels.tolist(), strict=True):
        for p, level in enumerate(y):
            if level < 1:
                continue
            above = [0] * size
            for j, other in enumerate(y):
                if other >= 0 and j != p and stands_above(s, j, p, ties):
                    above[other] += 1
            out["indices"].append(p)
            out["level"].append(level)
            out["above"].append(above)
        out["indptr"].append(len(out["indices"]))
        out["count"].append([y.count(k) for k in range(size)])
    return out


def assert_equal(ranks: PositiveRanks, expected: dict[str, list[Any]]) -> None:
    for name, values in expected.items():
        found = getattr(ranks, name)
        assert found.dtype == torch.int64
        assert found.tolist() == values, name


# Exact ranks.


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("name", sources())
def test_exact_ranks_equal_a_slow_loop(name: str, ties: Any) -> None:
    source, (q, c) = sources()[name], few_values()
    ranks = positive_ranks(q, c, source, ties=ties, normalize=False)
    similarities = q @ c.T
    expected = slow(similarities, matrix(source), ranks.count.shape[1], ties)
    assert expected["indices"]
    assert_equal(ranks, expected)
    assert torch.equal(ranks.similarity, similarities[ranks.row, ranks.indices])
    assert torch.equal(ranks.rank, 1 + ranks.above.sum(dim=1))


def test_the_four_rules_differ_and_bound_each_other() -> None:
    q, c = few_values()
    first, last, low, high = (
        positive_ranks(q, c, sources()["dense"], ties=t, normalize=False).above for t in TIES
    )
    for above in (first, last):
        assert (low <= above).all()
        assert (above <= high).all()
    assert torch.equal(first + last, low + high)  # of those that tie, each is first in one
    assert not torch.equal(low, high)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ties", TIES)
def test_dtypes(dtype: torch.dtype, ties: Any) -> None:
    """Halves are read as they are; similarities are float32, of float64 embeddings float64."""
    q, c = few_values(dtype)
    ranks = positive_ranks(q, c, sources()["dense"], ties=ties, normalize=False)
    assert ranks.similarity.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = slow(q.double() @ c.double().T, matrix(sources()["dense"]), 6, ties)
    assert_equal(ranks, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cosine_is_the_default(dtype: torch.dtype) -> None:
    q, c = (random(n, 16, seed=n).to(dtype) * scale for n, scale in ((N, 3), (M, 0.1)))
    levels = DenseLevels(graded())
    unit = [torch.nn.functional.normalize(x.double(), dim=1) for x in (q, c)]
    similarities = unit[0] @ unit[1].T
    gaps = similarities.sort(dim=1).values.diff(dim=1)
    assert gaps.min() > 1e-6  # no pair that float32 could exchange
    ranks = positive_ranks(q, c, levels)
    assert_equal(ranks, slow(similarities, graded(), 4, "first"))
    close = similarities[ranks.row, ranks.indices].to(ranks.similarity)
    torch.testing.assert_close(ranks.similarity, close)


@pytest.mark.parametrize("n", [1, 7, 64, 65])
@pytest.mark.parametrize("m", [1, 63, 64, 65, 203])
def test_shapes(n: int, m: int) -> None:
    q, c = few_values(n=n, m=m)
    levels = integers(-1, 3, n, m, seed=8)
    for ties in TIES:
        ranks = positive_ranks(q, c, DenseLevels(levels, 2), ties=ties, normalize=False)
        assert_equal(ranks, slow(q @ c.T, levels, 3, ties))


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("name", sources())
def test_row_blocks_change_nothing(name: str, ties: Any) -> None:
    q, c = few_values()
    whole = positive_ranks(q, c, sources()[name], ties=ties, normalize=False)
    for workspace in (3e-4, 3e-3):  # one row, and a few
        blocks = positive_ranks(
            q, c, sources()[name], ties=ties, normalize=False, workspace_mb=workspace
        )
        for a, b in zip(whole, blocks, strict=True):
            assert (a is b is None) or torch.equal(a, b)


def test_views_and_inputs_are_left_alone() -> None:
    q, c = few_values()
    levels = graded().to(torch.int8)
    kept = levels.clone()
    ranks = positive_ranks(q, c, DenseLevels(levels), normalize=False)
    for temperature in (None, 0.1):
        strided = positive_ranks(
            q.T.contiguous().T,
            c.repeat_interleave(2, dim=0)[::2],
            DenseLevels(levels),
            normalize=False,
            temperature=temperature,
        )
        assert torch.equal(strided.indices, ranks.indices)
    assert torch.equal(levels, kept)


def test_rows_and_sums_over_rows() -> None:
    q, c = few_values()
    ranks = positive_ranks(q, c, DenseLevels(graded()), normalize=False)
    row, column = (graded() > 0).nonzero(as_tuple=True)
    assert torch.equal(ranks.row, row)
    assert torch.equal(ranks.indices, column)
    values = random(len(row)).requires_grad_()
    sums = ranks.by_row(values)
    expected = [
        sum(v for v, i in zip(values.tolist(), row, strict=True) if i == n) for n in range(N)
    ]
    torch.testing.assert_close(sums.detach(), torch.tensor(expected, dtype=torch.float64))
    weights = random(N, seed=1)
    (gradient,) = torch.autograd.grad((sums * weights).sum(), values)
    assert torch.equal(gradient, weights[row])


@pytest.mark.parametrize("temperature", [None, 0.1])
def test_no_positives_at_all(temperature: float | None) -> None:
    q, c = (x.requires_grad_() for x in few_values())
    levels = DenseLevels(integers(-1, 1, N, M), 3)
    for workspace in (None, 3e-4):
        ranks = positive_ranks(q, c, levels, temperature=temperature, workspace_mb=workspace)
        assert ranks.indptr.tolist() == [0] * (N + 1)
        assert ranks.above.shape == (0, 4)
        assert ranks.rank.shape == ranks.row.shape == ranks.indices.shape == (0,)
        assert ranks.count.tolist() == [
            [int((row == k).sum()) for k in range(4)] for row in integers(-1, 1, N, M)
        ]
        assert ranks.by_row(ranks.rank).tolist() == [0] * N
        if temperature is not None:
            gradients = torch.autograd.grad(ranks.by_row(ranks.rank).sum(), (q, c))
            assert not any(x.any() for x in gradients)


# Smooth ranks.

SURROGATES = ("sigmoid", "upper_bound")
RHO, DELTA, OFFSET = 100.0, 0.05, 1.44


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def smooth_step(x: float, temperature: float, surrogate: str, lower: bool) -> float:
    if surrogate == "sigmoid":
        return sigmoid(x / temperature)
    if not lower:
        return 1.0 if x >= 0 else 0.0
    if x <= 0:
        return sigmoid(x / temperature)
    if x <= DELTA:
        return sigmoid(x / temperature) + 0.5
    return RHO * (x - DELTA) + OFFSET


def slow_smooth(
    similarities: Tensor, levels: Tensor, size: int, temperature: float, surrogate: str
) -> Tensor:
    rows = []
    for s, y in zip(similarities.tolist(), levels.tolist(), strict=True):
        for p in (p for p, level in enumerate(y) if level > 0):
            above = [0.0] * size
            for j in (j for j, other in enumerate(y) if other >= 0 and j != p):
                above[y[j]] += smooth_step(s[j] - s[p], temperature, surrogate, y[j] < y[p])
            rows.append(above)
    return torch.tensor(rows, dtype=torch.float64)


@functools.cache
def unit() -> tuple[Tensor, Tensor]:
    """Unit rows, close to each other: differences on both sides of delta."""
    around = random(1, 6) * 1.5
    q, c = (around + random(n, 6, seed=seed) for n, seed in ((N, 1), (M, 2)))
    return torch.nn.functional.normalize(q, dim=1), torch.nn.functional.normalize(c, dim=1)


@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("name", sources())
def test_smooth_ranks_equal_a_slow_loop(name: str, surrogate: Any, temperature: float) -> None:
    source, (q, c) = sources()[name], unit()
    options: dict[str, Any] = {"temperature": temperature, "surrogate": surrogate}
    ranks = positive_ranks(q, c, source, **options)
    size = ranks.count.shape[1]
    expected = slow_smooth(q @ c.T, matrix(source), size, temperature, surrogate)
    torch.testing.assert_close(ranks.above, expected, rtol=1e-9, atol=1e-9)
    exact = positive_ranks(q, c, source)
    for name in ("indptr", "indices", "level", "count"):
        assert torch.equal(getattr(ranks, name), getattr(exact, name))
    assert exact.at_least is None
    for workspace in (3e-4, 3e-3):
        blocks = positive_ranks(q, c, source, workspace_mb=workspace, **options)
        torch.testing.assert_close(blocks.above, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_smooth_ranks_with_ties_equal_a_slow_loop(surrogate: Any) -> None:
    """At 0 a sigmoid is 1/2, and the step of levels that are not lower 1."""
    q, c = few_values(torch.float64)
    found = positive_ranks(
        q, c, DenseLevels(graded()), temperature=0.1, surrogate=surrogate, normalize=False
    )
    expected = slow_smooth(q @ c.T, graded(), 4, 0.1, surrogate)
    torch.testing.assert_close(found.above, expected, rtol=1e-9, atol=1e-9)
    exact = positive_ranks(q, c, DenseLevels(graded()), ties="pessimistic", normalize=False)
    assert found.at_least is not None
    assert torch.equal(found.at_least, exact.above)


def test_a_low_temperature_gives_exact_ranks() -> None:
    q, c = unit()
    assert (q @ c.T).sort(dim=1).values.diff(dim=1).min() > 1e-5
    levels = DenseLevels(graded())
    smooth = positive_ranks(q, c, levels, temperature=1e-7)
    exact = positive_ranks(q, c, levels)
    torch.testing.assert_close(smooth.above, exact.above.double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.2])
def test_the_upper_bound_is_one(temperature: float) -> None:
    """Of lower levels; of others it is exact where nothing ties."""
    q, c = unit()
    levels = DenseLevels(graded())
    bound = positive_ranks(q, c, levels, temperature=temperature, surrogate="upper_bound")
    exact = positive_ranks(q, c, levels).above.double()
    lower = torch.arange(4) < bound.level[:, None]
    assert (bound.above >= exact)[lower].all()
    assert (bound.above > exact)[lower].any()
    assert torch.equal(bound.above[~lower], exact[~lower])


@pytest.mark.parametrize("workspace", [None, 3e-4])
@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "dot"])
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_gradcheck(surrogate: Any, normalize: bool, workspace: float | None) -> None:
    """In float64, with ignored pairs, away from the kinks at 0 and delta."""
    n, m = 5, 9
    q, c = (x[:size].clone() for x, size in zip(unit(), (n, m), strict=True))
    levels = graded(9, n=n, m=m)
    s = q @ c.T
    apart = s[:, :, None] - s[:, None, :]
    apart = apart[:, ~torch.eye(m, dtype=torch.bool)].abs()
    assert apart.min() > 1e-4
    assert (apart - DELTA).abs().min() > 1e-4
    assert (apart < DELTA).any()
    assert (apart > DELTA).any()

    def above(q: Tensor, c: Tensor) -> Tensor:
        return positive_ranks(
            q,
            c,
            DenseLevels(levels),
            temperature=0.05,
            surrogate=surrogate,
            normalize=normalize,
            workspace_mb=workspace,
        ).above

    assert gradcheck(above, (q.requires_grad_(), c.requires_grad_()))


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_gradients_of_other_dtypes(surrogate: Any, dtype: torch.dtype) -> None:
    """Of the same values in float64, rounded to the dtype of the embeddings."""
    q, c = (x.to(dtype) for x in unit())

    def gradients(*embeddings: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in embeddings]
        ranks = positive_ranks(*leaves, DenseLevels(graded()), temperature=0.1, surrogate=surrogate)
        weights = random(*ranks.above.shape).to(ranks.above)
        return torch.autograd.grad((ranks.above * weights).sum(), leaves)

    expected = gradients(q.double(), c.double())
    for found, wanted in zip(gradients(q, c), expected, strict=True):
        assert found.dtype == dtype
        error = (found.double() - wanted).abs().max() / wanted.abs().max()
        assert error < 4 * max(torch.finfo(dtype).eps, 1e-6)


@pytest.mark.parametrize("temperature", [None, 0.1])
def test_what_carries_a_gradient(temperature: float | None) -> None:
    q, c = (x.clone().requires_grad_() for x in unit())
    ranks = positive_ranks(q, c, DenseLevels(graded()), temperature=temperature)
    carrying = {name for name in ranks._fields if getattr(getattr(ranks, name), "grad_fn", None)}
    assert carrying == (set() if temperature is None else {"above"})


def test_the_same_inputs_give_the_same_bits() -> None:
    def results() -> list[Tensor]:
        q, c = (x.float().requires_grad_() for x in unit())
        ranks = positive_ranks(q, c, DenseLevels(graded()), temperature=0.1)
        return [ranks.above, *torch.autograd.grad(ranks.above.log1p().sum(), (q, c))]

    for a, b in zip(results(), results(), strict=True):
        assert torch.equal(a, b)


Q, C = few_values()
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "queries are a list": (
        {"queries": [[1.0]]},
        TypeError,
        "queries must be a torch.Tensor, got list",
    ),
    "integer queries": ({"queries": Q.long()}, TypeError, "queries must be float16, .*int64"),
    "other features": ({"candidates": C[:, :2]}, ValueError, "candidates must have D = 4 .* got 2"),
    "other dtype": ({"candidates": C.double()}, TypeError, "dtype of queries, torch.float32, got"),
    "levels are a tensor": (
        {"levels": graded()},
        TypeError,
        "levels must be None or a level source",
    ),
    "levels of another shape": (
        {"levels": DenseLevels(graded().T)},
        ValueError,
        r"\[N, M\] = \[9, 23\]",
    ),
    "too few for the diagonal": ({"candidates": C[:5]}, ValueError, "candidates .*got 5"),
    "unknown ties": (
        {"ties": "average"},
        ValueError,
        "ties must be one of 'first', .*got 'average'",
    ),
    "unknown surrogate": (
        {"surrogate": "hinge"},
        ValueError,
        "surrogate must be one of .*got 'hinge'",
    ),
    "zero temperature": (
        {"temperature": 0.0},
        ValueError,
        "temperature must be positive .*got 0.0",
    ),
    "NaN temperature": ({"temperature": math.nan}, ValueError, "temperature .*got nan"),
    "boolean temperature": (
        {"temperature": True},
        TypeError,
        "temperature must be a number.*got bool",
    ),
    "no workspace": ({"workspace_mb": 0}, ValueError, "workspace_mb must be positive .*got 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name: str) -> None:
    arguments, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        positive_ranks(**{"queries": Q, "candidates": C, **arguments})
