"""Judgements, bands and compositions: against slow definitions, and as both backends read them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from levels_seen import seen
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from grainrank import (
    DenseLevels,
    Diagonal,
    GrainKeys,
    LevelSource,
    SimilarityBands,
    SparseLevels,
    level_statistics,
    multi_level_ranking_loss,
)
from grainrank.levels import Ceiled, from_parts

N, M = 9, 21
EDGES = [-0.4, 0.1, 0.5]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(low: int, high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def qrels(n: int, m: int, seed: int = 0) -> dict[tuple[str, str], int]:
    """Grades -1..4 of a tenth of the pairs, and judgements of others."""
    grades = integers(-1, 5, n, m, seed=seed)
    judged = integers(0, 10, n, m, seed=seed + 1) == 0
    pairs = {
        (f"q{i}", f"d{j}"): int(grades[i, j])
        for i, j in itertools.product(range(n), range(m))
        if judged[i, j]
    }
    return {("q0", "other"): 9, ("another", "d1"): 9, **pairs}


def names(letter: str, n: int) -> list[str]:
    return [f"{letter}{i}" for i in range(n)]


def references(n: int, m: int) -> tuple[Tensor, Tensor]:
    return random(n, 5, seed=1), random(m, 5, seed=2)


def steep(n: int, seed: int) -> Tensor:
    """Keys [n, 7], 0 but for the last ones."""
    keys = integers(0, 2, n, 7, seed=seed) * (torch.arange(7) >= integers(0, 7, n, 1, seed=seed))
    return keys.masked_fill(torch.arange(7) >= integers(3, 9, n, 1, seed=seed + 2), -1)


def sources(n: int, m: int) -> dict[str, LevelSource]:
    """Every source and composition."""
    q_ref, c_ref = references(n, m)
    keys = GrainKeys(integers(-1, 3, n, 3), integers(-1, 3, m, 3, seed=1))
    sparse = SparseLevels.from_qrels(names("q", n), names("d", m), qrels(n, m), max_level=4)
    bands = SimilarityBands(q_ref, c_ref, EDGES)
    ids = integers(0, 6, n, seed=3), integers(0, 6, m, seed=4)
    more_ids = integers(0, 9, n, seed=5), integers(0, 9, m, seed=6)
    own = SimilarityBands(q_ref, c_ref, random(n, 2).sort(dim=1).values)
    return {
        "diagonal": Diagonal(),
        "prefix": keys,
        "count": GrainKeys(*keys.tensors, match="count"),
        # Deep paths that share long prefixes; some end early.
        "seven grains": GrainKeys(*(steep(x, seed) for x, seed in ((n, 13), (m, 14)))),
        "dense": DenseLevels(integers(-1, 6, n, m, seed=7), 7),
        "sparse": sparse,
        "bands": bands,
        "bands of rows": own,
        "bands of columns": SimilarityBands(
            c_ref, q_ref, random(m, 2, seed=9).sort(dim=1).values
        ).transposed(),
        "exclude": sparse.exclude(*ids),
        "exclude twice": keys.exclude(*ids).exclude(*more_ids),
        "union": keys | sparse,
        "union of three": (bands.exclude(*ids) | sparse | own).exclude(*more_ids),
    }


NAMES = list(sources(2, 2))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["as given", "transposed"])
def test_the_backend_sees_the_block(name: str, side: str, backend: str) -> None:
    source, n, m = sources(N, M)[name], N, M
    expected = source.block(0, N, M)
    if side == "transposed":
        source, n, m, expected = source.transposed(), M, N, expected.T
        assert torch.equal(source.block(0, M, N), expected)
    assert torch.equal(seen(source, backend, n, m), expected.long())


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_rows(name: str) -> None:
    source = sources(N, M)[name]
    whole = source.block(0, N, M)
    assert whole.dtype == torch.int8
    assert torch.equal(torch.cat([source.block(i, i + 1, M) for i in range(N)]), whole)
    assert torch.equal(source.transposed().transposed().block(0, N, M), whole)


@pytest.mark.parametrize("name", NAMES)
def test_many_columns_and_blocks(name: str, instruction_set: str) -> None:
    """Over the borders of chunks, strips and row blocks: as the same levels in a matrix."""
    n, m = 70, 2100
    source = sources(n, m)[name]
    matrix = DenseLevels(source.block(0, n, m), source.max_level)
    q, c = random(n, 8, seed=11), random(m, 8, seed=12)

    def run(levels: LevelSource) -> list[Tensor]:
        rows, columns = level_statistics(
            q, c, levels, temperature=0.2, direction="symmetric", backend="cpu", workspace_mb=0.3
        )
        return [*rows[:8], *columns[:8]]

    for a, b in zip(run(source), run(matrix), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def parts(source: LevelSource) -> Any:
    return source.kind, source.max_level, source.num_references, len(source.tensors)


@pytest.mark.parametrize("name", NAMES)
def test_a_source_is_rebuilt_from_its_parts(name: str) -> None:
    """What the operators carry is all there is, and no tensor is read."""
    source = sources(N, M)[name]
    ceiled = Ceiled(source, random(1, N), random(1, M), references(N, M), None)
    for given in (source, source.transposed(), ceiled):
        again = from_parts(given.kind, given.tensors)
        assert parts(again) == parts(given)
        assert all(a is b for a, b in zip(again.tensors, given.tensors, strict=True))
    assert torch.equal(
        from_parts(source.kind, source.tensors).block(2, 7, M), source.block(2, 7, M)
    )
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in source.tensors]
        assert parts(from_parts(source.kind, fakes)) == parts(source)


def test_judgements_flat_and_nested() -> None:
    flat = qrels(N, M)
    nested: dict[str, dict[str, int]] = {}
    for (query, candidate), grade in flat.items():
        nested.setdefault(query, {})[candidate] = grade
    expected = torch.zeros(N, M, dtype=torch.int8)
    for i, j in itertools.product(range(N), range(M)):
        expected[i, j] = flat.get((f"q{i}", f"d{j}"), 0)
    assert len(expected.unique()) == 6
    for given in (flat, nested):
        got = SparseLevels.from_qrels(names("q", N), names("d", M), given)
        assert got.max_level == 4
        assert torch.equal(got.block(0, N, M), expected)


def test_an_id_that_comes_twice_has_its_grade_twice() -> None:
    got = SparseLevels.from_qrels(["a", "b", "a"], torch.tensor([7, 8, 7]), {("a", 7): 2})
    assert got.block(0, 3, 3).tolist() == [[2, 0, 2], [0, 0, 0], [2, 0, 2]]


def test_nobody_is_judged() -> None:
    got = SparseLevels.from_qrels(["a"], ["x", "y"], {}, max_level=3)
    assert got.max_level == 3
    assert got.block(0, 1, 2).tolist() == [[0, 0]]


def test_unsorted_rows() -> None:
    got = SparseLevels(torch.tensor([0, 3, 3]), torch.tensor([4, 0, 2]), torch.tensor([1, 2, 3]), 5)
    assert got.block(0, 2, 5).tolist() == [[2, 0, 3, 0, 1], [0] * 5]


def test_bands_by_hand() -> None:
    q, c = references(N, M)
    cosine = torch.nn.functional.cosine_similarity(q[:, None].double(), c.double(), dim=2)
    expected = sum((cosine >= edge).long() for edge in EDGES)
    assert torch.equal(SimilarityBands(q, c, EDGES).block(0, N, M).long(), expected)
    dot = q.double() @ c.double().T
    got = SimilarityBands(q, c, torch.tensor([0.0, 2.0]), normalize=False).block(0, N, M)
    assert torch.equal(got.long(), (dot >= 0).long() + (dot >= 2))
    assert not SimilarityBands(q.requires_grad_(), c, EDGES).tensors[0].requires_grad


def test_bands_of_the_positives() -> None:
    """Candidate j against the row's positive."""
    _, c = references(N, M)
    positives = integers(0, M, N, seed=8)
    for given, rows in ((positives, positives.tolist()), (None, range(N))):
        got = SimilarityBands.from_positives(c, EDGES, given, num_queries=N).block(0, N, M)
        for i, j in itertools.product(range(N), range(M)):
            cosine = torch.nn.functional.cosine_similarity(c[rows[i]], c[j], dim=0)
            assert int(got[i, j]) == sum(float(cosine) >= edge for edge in EDGES)


@pytest.mark.parametrize("block", [3, 2**22])
def test_bands_of_quantiles(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grainrank.levels.bands._BLOCK", block * M)
    q, c = references(N, M)
    quantiles = [0.0, 0.3, 0.8, 1.0]
    got = SimilarityBands.from_quantiles(q, c, quantiles).block(0, N, M)
    order = torch.nn.functional.cosine_similarity(q[:, None], c, dim=2).argsort(dim=1)
    for i in range(N):
        by_rank = got[i, order[i]].tolist()
        assert by_rank == [sum(rank >= round(x * M) for x in quantiles) for rank in range(M)]


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "two lists": (
        lambda: SparseLevels([0, 1], [0], [1], 2),  # type: ignore[arg-type]
        TypeError, "indptr must be a torch.Tensor, got list",
    ),
    "indptr that ends early": (
        lambda: SparseLevels(torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([1, 1]), 2),
        ValueError, "indptr must rise from 0 to the 2 entries",
    ),
    "a candidate that is not there": (
        lambda: SparseLevels(torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([1]), 2),
        ValueError, r"indices must lie in 0..1 \(num_candidates\), got 2..2",
    ),
    "a pair twice": (
        lambda: SparseLevels(torch.tensor([0, 2]), torch.tensor([1, 1]), torch.tensor([1, 2]), 2),
        ValueError, "got query 0 with candidate 1 twice",
    ),
    "a high grade": (
        lambda: SparseLevels.from_qrels(["a"], ["b"], {("a", "b"): 16}),
        ValueError, r"levels must lie in -1..15, got 16..16; merge grades",
    ),
    "a grade above L": (
        lambda: SparseLevels.from_qrels(["a"], ["b"], {("a", "b"): 3}, max_level=2),
        ValueError, r"levels must lie in -1..2 \(max_level\), got 3..3",
    ),
    "half a grade": (
        lambda: SparseLevels.from_qrels(["a"], ["b"], {("a", "b"): 0.5}),
        TypeError, "grades must be integers, got 0.5",
    ),
    "keys that are no pairs": (
        lambda: SparseLevels.from_qrels(["a"], ["b"], {"a": 1}),
        TypeError, "qrels must have keys .* got the key 'a'",
    ),
    "judgements of another batch": (
        lambda: use(SparseLevels.from_qrels(["a"], ["b"], {})),
        ValueError, r"levels must be of \[N, M\] = \[9, 21\] pairs, got SparseLevels of \[1, 1\]",
    ),
    "thresholds that fall": (
        lambda: SimilarityBands(*references(N, M), [0.5, 0.1]),
        ValueError, "thresholds must be ascending",
    ),
    "no threshold": (
        lambda: SimilarityBands(*references(N, M), []),
        ValueError, r"thresholds must have shape \[L\] or .* got \(0,\)",
    ),
    "thresholds of other rows": (
        lambda: SimilarityBands(*references(N, M), torch.zeros(4, 2)),
        ValueError, r"\[9, L\] with L in 1..15, got \(4, 2\)",
    ),
    "references of two widths": (
        lambda: SimilarityBands(random(N, 5), random(M, 4), EDGES),
        ValueError, "candidate_reference must have E = 5 features",
    ),
    "integer references": (
        lambda: SimilarityBands(random(N, 5).long(), random(M, 5), EDGES),
        TypeError, "query_reference must be floating",
    ),
    "a reference of other rows": (
        lambda: use(SimilarityBands(*references(N - 1, M), EDGES)),
        ValueError, "query_reference must have N = 9 rows",
    ),
    "quantiles beyond 1": (
        lambda: SimilarityBands.from_quantiles(*references(N, M), [0.5, 1.5]),
        ValueError, "quantiles must be ascending in 0..1",
    ),
    "no source beside it": (lambda: Diagonal() | 3, TypeError, "unsupported operand"),
    "something after the margin": (
        lambda: Diagonal() | Diagonal().false_negative_margin(0.1),
        ValueError, r"\| cannot follow false_negative_margin",
    ),
    "exclude after the margin": (
        lambda: Diagonal().false_negative_margin(0.1).exclude(torch.arange(N), torch.arange(M)),
        ValueError, "exclude cannot follow false_negative_margin",
    ),
    "a relative margin of 1": (
        lambda: Diagonal().false_negative_margin(1.0, relative=True),
        ValueError, "margin must be in 0 <= margin < 1 where relative, got 1.0",
    ),
    "a margin of NaN": (
        lambda: Diagonal().false_negative_margin(float("nan")),
        ValueError, "margin must be finite",
    ),
    "curated ids of other rows": (
        lambda: use(
            Diagonal().false_negative_margin(0.1, curated=(torch.arange(3), torch.arange(M)))
        ),
        ValueError, "curated query ids must have N = 9 rows",
    ),
}  # fmt: skip


def use(levels: LevelSource) -> None:
    multi_level_ranking_loss(random(N, 4), random(M, 4), levels, temperature=0.1)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input(name: str) -> None:
    run, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        run()


def test_a_similarity_on_the_threshold_is_in_the_band(backend: str) -> None:
    candidates = torch.tensor([[0.25], [0.5], [1.0]])
    source = SimilarityBands(torch.ones(1, 1), candidates, [0.5, 1.0], normalize=False)
    assert source.block(0, 1, 3).tolist() == [[0, 1, 2]]
    assert seen(source, backend, 1, 3).tolist() == [[0, 1, 2]]
