"""The demo's metrics against slow loops written from their definitions."""

import math

import pytest
import torch

from grainrank.demo import metrics


def slow_shared(a, b):
    shared = 0
    for x, y in zip(a, b, strict=True):
        if x != y:
            break
        shared += 1
    return shared


@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_slow_loops_with_ties(seed):
    generator = torch.Generator().manual_seed(seed)
    n, m = 9, 40
    grains = torch.randint(0, 3, (m, 3), generator=generator)
    grains = torch.cat([grains, torch.arange(m)[:, None]], dim=1)
    targets = torch.randint(0, m, (n,), generator=generator)
    similarity = torch.randint(0, 4, (n, m), generator=generator).float()  # many ties
    similarity[0] = 0.5
    similarity[1, targets[1]] = 9.0
    ranking = metrics.rank(iter(similarity.split(4)), targets, grains)
    found = metrics.summarise(ranking, ("a", "b", "c", "d"))

    at_1, at_10, ndcg, top_levels = [], [], [], []
    for i in range(n):
        order = sorted(range(m), key=lambda j, row=similarity[i]: (-row[j].item(), j))[:10]
        target = grains[targets[i]].tolist()
        every = [slow_shared(target, grains[j].tolist()) for j in range(m)]
        gains, best = [every[j] for j in order], sorted(every, reverse=True)[:10]
        at_1.append(order[0] == targets[i])
        at_10.append(targets[i].item() in order)
        ndcg.append(
            sum(g / math.log2(p + 2) for p, g in enumerate(gains))
            / sum(g / math.log2(p + 2) for p, g in enumerate(best))
        )
        top_levels.append(every[order[0]])
        assert ranking.levels[i].tolist() == gains
        assert ranking.best_levels[i].tolist() == best
    assert found["recall@1"] == pytest.approx(sum(at_1) / n)
    assert found["recall@10"] == pytest.approx(sum(at_10) / n)
    assert found["ndcg@10[linear]"] == pytest.approx(sum(ndcg) / n)
    wrong = [level for level in top_levels if level < 4]
    for level, name in enumerate("abc", start=1):
        assert found[f"top_in_{name}"] == pytest.approx(sum(x >= level for x in top_levels) / n)
        assert found[f"wrong_top_in_{name}"] == pytest.approx(
            sum(x >= level for x in wrong) / len(wrong)
        )
    by_rank = metrics.levels_by_rank(ranking.levels, 4)
    assert by_rank[0] == pytest.approx([top_levels.count(level) / n for level in range(5)])


def test_a_perfect_ranking_scores_one():
    grains = torch.tensor([[0, 0], [0, 1], [1, 2], *([9, 9 + i] for i in range(9))])
    targets = torch.tensor([0])
    similarity = torch.arange(12.0).flip(0)[None]
    found = metrics.summarise(metrics.rank(iter([similarity]), targets, grains), ("a", "b"))
    assert found["ndcg@10[linear]"] == 1
    assert found["recall@1"] == 1
    assert math.isnan(found["wrong_top_in_a"])  # there is no wrong top hit
