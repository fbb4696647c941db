"""The metrics against slow loops from the definitions, and known values."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from grainrank import DenseLevels
from grainrank.metrics import (
    average_precision,
    grain_of_wrong_top,
    hierarchical_average_precision,
    level_violation_rate,
    mean_over_queries,
    ndcg_at,
    precision_at,
    recall_at,
    reciprocal_rank,
    success_at,
    top_level,
)
from grainrank.ranks import PositiveRanks, positive_ranks

N, M, L = 30, 60, 4
TIES = ("first", "last", "optimistic", "pessimistic")
CUTOFFS = (1, 3, 10, M + 40)  # the last is more than there are candidates
GAINS: dict[str, list[float]] = {"linear": [0, 1, 2, 3, 4], "exp2": [0, 1, 3, 7, 15]}
TABLE = [0.0, 0.5, 3.0, 2.0, 2.0]  # neither rising nor distinct


@functools.cache
def run(lowest: int = 0, values: int = 6) -> tuple[Tensor, Tensor]:
    """Scores [N, M], of few values, and levels [N, M] from `lowest` to L, most of them 0."""
    generator = torch.Generator().manual_seed(7)
    scores = torch.randint(0, values, (N, M), generator=generator) / 4
    levels = torch.randint(lowest, L + 1, (N, M), generator=generator)
    levels[torch.rand(N, M, generator=generator) < 0.7] = 0
    levels[:3] = 0  # nothing to be found
    levels[3:8].clamp_(max=1)  # nothing of the higher levels
    levels[8] = levels[8].clamp(min=1)  # no negatives
    row = torch.arange(10, N)  # one best candidate, of each level
    scores[row, row], levels[row, row] = 9.0, row % (L + 1)
    return scores, levels


def ranks_of(scores: Tensor, levels: Tensor, ties: Any = "last") -> PositiveRanks:
    queries = torch.eye(len(scores), dtype=scores.dtype)  # dot products are the scores
    source = DenseLevels(levels, L)
    return positive_ranks(queries, scores.T.contiguous(), source, normalize=False, ties=ties)


def close(found: Tensor, expected: Iterable[float], tolerance: float = 1e-9) -> None:
    values = torch.tensor(list(expected), dtype=torch.float64)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, values, rtol=0, atol=tolerance)


class Query:
    """The candidates of one query that take part, and which of them stand above another."""

    def __init__(self, scores: Tensor, levels: Tensor, ties: str) -> None:
        kept = [j for j in range(len(levels)) if levels[j] >= 0]
        self.scores, self.ties = scores.tolist(), ties
        self.level = {j: int(levels[j]) for j in kept}
        self.positives = [j for j in kept if self.level[j] > 0]
        self.above = {p: [j for j in kept if j != p and self._above(j, p)] for p in self.positives}
        self.rank = {p: 1 + len(self.above[p]) for p in self.positives}

    def _above(self, j: int, p: int) -> bool:
        if self.scores[j] != self.scores[p]:
            return self.scores[j] > self.scores[p]
        return {"first": j < p, "last": j > p, "optimistic": False, "pessimistic": True}[self.ties]

    def relevant(self, min_level: int) -> list[int]:
        return [p for p in self.positives if self.level[p] >= min_level]

    def count(self, level: int) -> int:
        return sum(x == level for x in self.level.values())


def recall(q: Query, k: int, rel: int) -> float:
    hits = [p for p in q.relevant(rel) if q.rank[p] <= k]
    return len(hits) / len(q.relevant(rel)) if q.relevant(rel) else 0.0


def precision(q: Query, k: int, rel: int) -> float:
    return sum(q.rank[p] <= k for p in q.relevant(rel)) / k


def success(q: Query, k: int, rel: int) -> float:
    return float(any(q.rank[p] <= k for p in q.relevant(rel)))


def best_reciprocal(q: Query, rel: int) -> float:
    return max((1 / q.rank[p] for p in q.relevant(rel)), default=0.0)


def ap(q: Query, rel: int) -> float:
    relevant = q.relevant(rel)
    terms = [(1 + sum(j in relevant for j in q.above[p])) / q.rank[p] for p in relevant]
    return sum(terms) / len(terms) if terms else 0.0


def ndcg(q: Query, k: int | None, gain: list[float]) -> float:
    limit = M if k is None else k
    dcg = sum(
        gain[q.level[p]] / math.log2(1 + q.rank[p]) for p in q.positives if q.rank[p] <= limit
    )
    best = sorted((gain[level] for level in q.level.values()), reverse=True)[:limit]
    ideal = sum(g / math.log2(1 + r) for r, g in enumerate(best, start=1))
    return dcg / ideal if ideal else 0.0


def h_ap(q: Query, table: list[float] | None) -> float:
    def rel(j: int) -> float:
        level = q.level[j]
        if table is not None:
            return table[level]
        return level / L / q.count(level)

    total = sum(rel(p) for p in q.positives)
    h_rank = {p: rel(p) + sum(min(rel(j), rel(p)) for j in q.above[p]) for p in q.positives}
    return sum(h_rank[p] / q.rank[p] for p in q.positives) / total if total else 0.0


def violations(q: Query) -> float:
    lower = [(p, j) for p in q.positives for j in q.level if q.level[j] < q.level[p]]
    return sum(j in q.above[p] for p, j in lower) / len(lower) if lower else 0.0


def top(q: Query) -> int:
    return max((q.level[p] for p in q.positives if q.rank[p] == 1), default=0)


@functools.cache
def graded(ties: str) -> tuple[PositiveRanks, list[Query]]:
    """With ignored pairs."""
    scores, levels = run(lowest=-1)
    assert (levels == -1).any()
    queries = [Query(s, y, ties) for s, y in zip(scores, levels, strict=True)]
    return ranks_of(scores, levels, ties), queries


@pytest.mark.parametrize("ties", TIES)
def test_binary_metrics_equal_slow_loops(ties: str) -> None:
    ranks, queries = graded(ties)
    for rel in range(1, L + 1):
        close(reciprocal_rank(ranks, rel), (best_reciprocal(q, rel) for q in queries))
        close(average_precision(ranks, rel), (ap(q, rel) for q in queries))
        for k in CUTOFFS:
            close(recall_at(ranks, k, rel), (recall(q, k, rel) for q in queries))
            close(precision_at(ranks, k, rel), (precision(q, k, rel) for q in queries))
            close(success_at(ranks, k, rel), (success(q, k, rel) for q in queries))


@pytest.mark.parametrize("k", [None, *CUTOFFS])
@pytest.mark.parametrize("ties", TIES)
def test_ndcg_equals_a_slow_loop(ties: str, k: int | None) -> None:
    ranks, queries = graded(ties)
    for name, table in GAINS.items():
        found = ndcg_at(ranks, k, gain=name)  # type: ignore[arg-type]
        close(found, (ndcg(q, k, table) for q in queries))
        assert torch.equal(found, ndcg_at(ranks, k, gain=torch.tensor(table)))
    close(ndcg_at(ranks, k, gain=TABLE), (ndcg(q, k, TABLE) for q in queries))
    assert not ndcg_at(ranks, k, gain=[0.0] * (L + 1)).any()


@pytest.mark.parametrize("ties", TIES)
def test_hierarchical_average_precision_equals_a_slow_loop(ties: str) -> None:
    ranks, queries = graded(ties)
    for table in (None, TABLE, GAINS["linear"], [0.0] * (L + 1)):
        close(hierarchical_average_precision(ranks, table), (h_ap(q, table) for q in queries))
    scaled = hierarchical_average_precision(ranks, [x * 7 for x in TABLE])
    torch.testing.assert_close(scaled, hierarchical_average_precision(ranks, TABLE))
    binary = [0.0, 0.0, 1.0, 1.0, 1.0]
    close(hierarchical_average_precision(ranks, binary), average_precision(ranks, 2).tolist())


@pytest.mark.parametrize("ties", TIES)
def test_violations_equal_a_slow_loop(ties: str) -> None:
    ranks, queries = graded(ties)
    close(level_violation_rate(ranks), (violations(q) for q in queries))


@pytest.mark.parametrize("min_level", [1, 2, L])
@pytest.mark.parametrize("ties", TIES)
def test_grain_of_wrong_top_equals_a_slow_loop(ties: str, min_level: int) -> None:
    ranks, queries = graded(ties)
    assert top_level(ranks).tolist() == [top(q) for q in queries]
    tops = [top(q) for q in queries if q.relevant(min_level)]
    wrong = [level for level in tops if level < L]
    found = grain_of_wrong_top(ranks, min_level)
    assert (found.queries, found.wrong) == (len(tops), len(wrong))
    assert 0 < len(wrong) < len(tops) < N
    close(found.of_wrong, (sum(x >= k for x in wrong) / len(wrong) for k in range(1, L)))
    close(found.of_all, (sum(x >= k for x in tops) / len(tops) for k in range(1, L + 1)))
    successes = mean_over_queries(success_at(ranks, 1, L), ranks, min_level)
    close(found.of_all[-1:], [successes.item()])


@pytest.mark.parametrize("min_level", [1, 2, L])
def test_mean_leaves_out_queries_without_a_positive(min_level: int) -> None:
    ranks, queries = graded("first")
    values = torch.rand(N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    kept = [x for x, q in zip(values.tolist(), queries, strict=True) if q.relevant(min_level)]
    assert len(kept) < N
    close(mean_over_queries(values, ranks, min_level)[None], [sum(kept) / len(kept)])
    poisoned = values.index_fill(0, torch.arange(3), torch.nan)  # rows without positives
    assert mean_over_queries(poisoned, ranks).isfinite()


# Known values, and the edges.


def every(ranks: PositiveRanks) -> dict[str, Tensor]:
    return {
        "recall": recall_at(ranks, 2),
        "precision": precision_at(ranks, 2),
        "success": success_at(ranks, 2),
        "reciprocal": reciprocal_rank(ranks),
        "ap": average_precision(ranks),
        "ndcg": ndcg_at(ranks, gain="linear"),
        "h_ap": hierarchical_average_precision(ranks, GAINS["linear"]),
        "violations": level_violation_rate(ranks),
    }


def test_the_best_and_the_worst_order() -> None:
    levels = run()[1][9:]
    best, worst = (every(ranks_of(x, levels)) for x in (levels.double(), -levels.double()))
    assert all((values == 1).all() for name, values in best.items() if name in ("success", "ap"))
    for name in ("ndcg", "h_ap", "reciprocal"):
        close(best[name], [1.0] * len(levels))
    assert not best["violations"].any()
    assert (worst["violations"] == 1).all()
    assert all((worst[name] < best[name]).all() for name in ("ap", "ndcg", "h_ap", "reciprocal"))


@pytest.mark.parametrize("ties", TIES)
def test_no_positives_at_all(ties: str) -> None:
    ranks = ranks_of(run()[0], torch.zeros(N, M, dtype=torch.int64), ties)
    for values in every(ranks).values():
        assert values.dtype == torch.float64
        assert values.tolist() == [0.0] * N
        assert mean_over_queries(values, ranks) == 0
    found = grain_of_wrong_top(ranks)
    assert found[:2] == (0, 0)
    assert not found.of_wrong.any()
    assert not found.of_all.any()


def test_optimistic_ties_share_a_rank() -> None:
    """As the documentation says: precision and nDCG are no longer bounded by 1."""
    scores, levels = torch.zeros(1, 3), torch.tensor([[4, 4, 0]])
    ranks = ranks_of(scores, levels, "optimistic")
    assert precision_at(ranks, 1).item() == 2
    close(ndcg_at(ranks, gain="linear"), [2 / (1 + 1 / math.log2(3))])
    assert success_at(ranks, 1).item() == 1
    assert top_level(ranks).item() == 4
    assert top_level(ranks_of(scores, levels, "pessimistic")).item() == 0
