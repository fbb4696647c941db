"""The metrics against trec_eval, scikit-learn and the demo."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_metrics import CUTOFFS, GAINS, TIES, L, M, N, close, ranks_of, run
from torch import Tensor

from grainrank import GrainKeys, SparseLevels
from grainrank.demo import metrics as demo
from grainrank.metrics import (
    average_precision,
    grain_of_wrong_top,
    level_violation_rate,
    mean_over_queries,
    ndcg_at,
    precision_at,
    recall_at,
    reciprocal_rank,
    success_at,
)
from grainrank.ranks import PositiveRanks, positive_ranks

# trec_eval, through ir-measures.


def names(letter: str, n: int) -> list[str]:
    return [f"{letter}{i:03}" for i in range(n)]


def judgements() -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    scores, levels = run()
    queries, documents = [str(i) for i in range(N)], names("d", M)
    qrels = {
        q: dict(zip(documents, row, strict=True))
        for q, row in zip(queries, levels.tolist(), strict=True)
    }
    of_run = {
        q: dict(zip(documents, row, strict=True))
        for q, row in zip(queries, scores.tolist(), strict=True)
    }
    return qrels, of_run


@functools.cache
def ranks_of_judgements() -> PositiveRanks:
    qrels, _ = judgements()
    source = SparseLevels.from_qrels([str(i) for i in range(N)], names("d", M), qrels)
    queries, candidates = torch.eye(N), run()[0].T.contiguous()
    return positive_ranks(queries, candidates, source, normalize=False, ties="last")


def measures() -> dict[str, Callable[[PositiveRanks], Tensor]]:
    """By the names that ir-measures parses."""
    out: dict[str, Callable[[PositiveRanks], Tensor]] = {
        "nDCG": lambda ranks: ndcg_at(ranks, gain="linear"),
        "nDCG(gains={1:1,2:3,3:7,4:15})": lambda ranks: ndcg_at(ranks, gain="exp2"),
    }
    for k in CUTOFFS:
        out[f"nDCG(dcg='log2')@{k}"] = lambda ranks, k=k: ndcg_at(ranks, k, gain="linear")
        out[f"nDCG(gains={{1:1,2:3,3:7,4:15}})@{k}"] = lambda ranks, k=k: ndcg_at(
            ranks, k, gain="exp2"
        )
    for rel in range(1, L + 1):
        out[f"RR(rel={rel})"] = lambda ranks, rel=rel: reciprocal_rank(ranks, rel)
        out[f"AP(rel={rel})"] = lambda ranks, rel=rel: average_precision(ranks, rel)
        for k in CUTOFFS:
            for name, metric in (("P", precision_at), ("R", recall_at), ("Success", success_at)):
                out[f"{name}(rel={rel})@{k}"] = lambda ranks, k=k, rel=rel, metric=metric: metric(
                    ranks, k, rel
                )
    return out


@functools.cache
def of_ir_measures(name: str) -> dict[str, float]:
    ir_measures = pytest.importorskip("ir_measures", reason="trec_eval (ir-measures) is missing")
    pytest.importorskip("pytrec_eval", reason="trec_eval (pytrec-eval-terrier) is missing")
    parsed = ir_measures.parse_measure(name)
    return {x.query_id: x.value for x in ir_measures.iter_calc([parsed], *judgements())}


@pytest.mark.parametrize("name", measures())
def test_equals_trec_eval(name: str) -> None:
    expected = of_ir_measures(name)
    assert len(expected) == N
    close(measures()[name](ranks_of_judgements()), (expected[str(i)] for i in range(N)))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_equals_gdeval(k: int) -> None:
    """The program of the TREC Web Tracks; it prints five decimals."""
    if shutil.which("perl") is None:
        pytest.skip("gdeval needs perl")
    expected = of_ir_measures(f"nDCG(dcg='exp-log2')@{k}")
    found = ndcg_at(ranks_of_judgements(), k, gain="exp2")
    close(found, (expected.get(str(i), 0.0) for i in range(N)), tolerance=5.1e-6)


@pytest.mark.parametrize("rel", range(1, L + 1))
def test_means_equal_those_of_ir_measures(rel: int) -> None:
    """Where the qrels hold only queries with a relevant document; else theirs is lower."""
    ir_measures = pytest.importorskip("ir_measures", reason="trec_eval (ir-measures) is missing")
    qrels, of_run = judgements()
    measure = ir_measures.parse_measure(f"AP(rel={rel})")
    ranks = ranks_of_judgements()
    found = mean_over_queries(average_precision(ranks, rel), ranks, rel)
    relevant = {q: of_query for q, of_query in qrels.items() if max(of_query.values()) >= rel}
    assert 0 < len(relevant) < N
    theirs = ir_measures.calc_aggregate([measure], relevant, of_run)[measure]
    close(found[None], [theirs])
    over_all = ir_measures.calc_aggregate([measure], qrels, of_run)[measure]
    close(found[None] * len(relevant) / N, [over_all])


# scikit-learn: nDCG without ties; average precision and AUC with ties.


def sklearn_metrics() -> Any:
    return pytest.importorskip("sklearn.metrics", reason="scikit-learn is missing")


@pytest.mark.parametrize("k", [None, *CUTOFFS])
@pytest.mark.parametrize("gain", GAINS)
def test_ndcg_equals_scikit_learn(gain: Any, k: int | None) -> None:
    levels = run()[1]
    scores = torch.rand(N, M, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ndcg_score = sklearn_metrics().ndcg_score
    gains = torch.tensor(GAINS[gain])[levels]
    expected = [
        ndcg_score(y[None].numpy(), s[None].numpy(), k=k, ignore_ties=True)
        for y, s in zip(gains, scores, strict=True)
    ]
    close(ndcg_at(ranks_of(scores, levels), k, gain=gain), expected)


def relevant_rows(min_level: int) -> list[int]:
    """With a relevant candidate and one that is not."""
    relevant = run()[1] >= min_level
    return (relevant.any(dim=1) & ~relevant.all(dim=1)).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("min_level", range(1, L + 1))
def test_average_precision_equals_scikit_learn(min_level: int) -> None:
    """A threshold of its precision-recall curve takes in all that tie."""
    score, rows = sklearn_metrics().average_precision_score, relevant_rows(min_level)
    scores, levels = run()
    found = average_precision(ranks_of(scores, levels, "pessimistic"), min_level)[rows]
    close(found, (score((levels[i] >= min_level).numpy(), scores[i].numpy()) for i in rows))


def test_violations_of_one_level_equal_scikit_learn() -> None:
    """The area under the ROC curve takes half of the pairs that tie."""
    score, rows = sklearn_metrics().roc_auc_score, relevant_rows(1)
    scores, levels = run()[0], run()[1].clamp(max=1)
    low, high = (level_violation_rate(ranks_of(scores, levels, t))[rows] for t in TIES[2:])
    assert (low < high).all()
    close(1 - (low + high) / 2, (score(levels[i].numpy(), scores[i].numpy()) for i in rows))


# The demo's dense metrics.


def test_equals_the_demo() -> None:
    generator = torch.Generator().manual_seed(3)
    grains = torch.cat(
        [torch.randint(0, 3, (M, 3), generator=generator), torch.arange(M)[:, None]], 1
    )
    targets = torch.randint(0, M, (N,), generator=generator)
    scores = run()[0]
    expected = demo.summarise(demo.rank(iter(scores.split(7)), targets, grains), "abcd")
    source = GrainKeys(grains[targets], grains)
    ranks = positive_ranks(torch.eye(N), scores.T.contiguous(), source, normalize=False)
    top = grain_of_wrong_top(ranks)
    close(recall_at(ranks, 1, 4).mean()[None], [expected["recall@1"]])
    close(recall_at(ranks, 10, 4).mean()[None], [expected["recall@10"]])
    close(ndcg_at(ranks, 10, gain="linear").mean()[None], [expected[demo.NDCG]])
    close(top.of_wrong, (expected[f"wrong_top_in_{x}"] for x in "abc"))
    close(top.of_all, [*(expected[f"top_in_{x}"] for x in "abc"), expected["recall@1"]])
