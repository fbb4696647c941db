"""The losses on ranks, against loops written from the papers' formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from descent import descend
from torch import Tensor

import grainrank
from grainrank import (
    DenseLevels,
    GrainKeys,
    hierarchical_ap_loss,
    smooth_ap_loss,
    smooth_ndcg_loss,
    smooth_recall_loss,
)
from grainrank.testing import Shape, make_dense_levels, make_inputs

N, M, D, L = 7, 23, 5, 3
TAU = 0.07
JOINT = {"joint_blocks": ("candidate_query",)}
LOSSES: dict[str, Callable[..., Tensor]] = {
    "smooth-ap": smooth_ap_loss,
    "hierarchical-ap": hierarchical_ap_loss,
    "recall": smooth_recall_loss,
    "ndcg": smooth_ndcg_loss,
}


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, candidates and levels; row 2 has no positive."""
    inputs = make_inputs(Shape(N, M, D), torch.float64, seed=seed)
    levels = make_dense_levels(Shape(N, M, D), L, seed=seed)
    levels[2] = levels[2].clamp_max(0)
    return inputs.queries, inputs.candidates, levels


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def upper_bound(x: float) -> float:
    """ROADMAP's, with the numbers of HAPPIER's public code."""
    if x > 0.05:
        return 100.0 * (x - 0.05) + 1.44
    return sigmoid(x / TAU) + (0.5 if x > 0 else 0.0)


def rows(q: Tensor, c: Tensor, levels: Tensor) -> list[list[tuple[float, int]]]:
    """Similarity and level of the pairs of each row."""
    q, c = torch.nn.functional.normalize(q), torch.nn.functional.normalize(c)
    s = (q @ c.T).tolist()
    return [
        [(s[i][j], int(levels[i, j])) for j in range(len(s[i])) if levels[i, j] >= 0]
        for i in range(len(s))
    ]


def smooth_rank(row: list[tuple[float, int]], p: int) -> float:
    return 1 + sum(sigmoid((s - row[p][0]) / TAU) for j, (s, _) in enumerate(row) if j != p)


def of_row(name: str, row: list[tuple[float, int]]) -> float:
    positives = [p for p, (_, y) in enumerate(row) if y > 0]
    if not positives:
        return 0.0
    if name == "smooth-ap":
        total = 0.0
        for p in positives:
            among = 1 + sum(sigmoid((row[j][0] - row[p][0]) / TAU) for j in positives if j != p)
            total += among / smooth_rank(row, p)
        return 1 - total / len(positives)
    if name == "recall":
        within = [sigmoid(k - smooth_rank(row, p)) for p in positives for k in (1, 2, 4, 8, 16)]
        return 1 - sum(within) / len(within)
    if name == "ndcg":
        dcg = sum(row[p][1] / math.log2(1 + smooth_rank(row, p)) for p in positives)
        gains = sorted((row[p][1] for p in positives), reverse=True)
        ideal = sum(gain / math.log2(2 + i) for i, gain in enumerate(gains))
        return 1 - dcg / ideal
    counts = [sum(y == level for _, y in row) for level in range(L + 1)]
    relevance = [level / L / max(counts[level], 1) for level in range(L + 1)]
    total = 0.0
    for p in positives:
        s_p, y_p = row[p]
        rank, hrank = 1.0, relevance[y_p]
        for j, (s, y) in enumerate(row):
            if j == p:
                continue
            at_least = float(s >= s_p)
            rank += upper_bound(s - s_p) if y < y_p else at_least
            hrank += min(relevance[y], relevance[y_p]) * at_least
        total += hrank / rank
    return 1 - total / sum(relevance[row[p][1]] for p in positives)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", LOSSES)
def test_equals_the_formula(name: str, seed: int) -> None:
    q, c, levels = batch(seed)
    losses_of_rows = [of_row(name, row) for row in rows(q, c, levels)]
    expected = torch.tensor(losses_of_rows, dtype=torch.float64)
    options: dict[str, Any] = {"temperature": TAU}
    losses = LOSSES[name](q, c, DenseLevels(levels, L), reduction="none", **options)
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)
    mean = LOSSES[name](q, c, DenseLevels(levels, L), **options)
    torch.testing.assert_close(mean, expected.sum() / (N - 1), rtol=1e-9, atol=1e-12)
    in_blocks = LOSSES[name](q, c, DenseLevels(levels, L), workspace_mb=1e-3, **options)
    torch.testing.assert_close(in_blocks, mean, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("direction", ["query_to_candidate", "candidate_to_query", "symmetric"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradient(name: str, direction: str) -> None:
    """The numerator of the hierarchical loss is a step, whose gradient is 0 almost everywhere."""
    q, c, levels = (x[:4] if i != 1 else x[:9] for i, x in enumerate(batch(5)))
    source = DenseLevels(levels[:, :9], L)

    def loss(q: Tensor, c: Tensor) -> Tensor:
        return LOSSES[name](q, c, source, temperature=TAU, direction=direction)

    inputs = q.clone().requires_grad_(), c.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-7, atol=1e-5)
    assert torch.autograd.gradcheck(
        lambda q, c: LOSSES[name](q, c, source, temperature=TAU, workspace_mb=1e-4), inputs,
        eps=1e-7, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_options(name: str) -> None:
    """Both directions are two calls, prefixes a sum, the memory more candidates."""
    loss = LOSSES[name]
    q, c, _ = batch()
    keys = make_inputs(Shape(N, M, D, L), seed=3)
    levels = GrainKeys(keys.query_keys, keys.candidate_keys)
    back = GrainKeys(keys.candidate_keys, keys.query_keys)
    both = loss(q, c, levels, direction="symmetric")
    torch.testing.assert_close(both, (loss(q, c, levels) + loss(c, q, back)) / 2)
    swapped = loss(q, c, levels, direction="candidate_to_query", reduction="none")
    torch.testing.assert_close(swapped, loss(c, q, back, reduction="none"))
    prefixes = loss(q, c, levels, matryoshka_dims=(3, 5), matryoshka_weights=(2.0, 1.0))
    expected = 2 * loss(q[:, :3], c[:, :3], levels) + loss(q, c, levels)
    torch.testing.assert_close(prefixes, expected)
    x = c[:9].clone().requires_grad_()
    with_memory = loss(q, x, levels, memory=c[9:])
    torch.testing.assert_close(with_memory, loss(q, c, levels))
    with_memory.backward()
    whole = c.clone().requires_grad_()
    loss(q, whole, levels).backward()
    torch.testing.assert_close(x.grad, whole.grad[:9])
    margin = levels.false_negative_margin(0.05)
    assert not torch.equal(loss(q, c, margin), loss(q, c, levels))


def test_own_gains_and_relevance() -> None:
    q, c, levels = batch()
    source = DenseLevels(levels, L)
    exp2 = smooth_ndcg_loss(q, c, source, gain="exp2")
    torch.testing.assert_close(exp2, smooth_ndcg_loss(q, c, source, gain=[0.0, 1.0, 3.0, 7.0]))
    assert not torch.equal(exp2, smooth_ndcg_loss(q, c, source))
    given = hierarchical_ap_loss(q, c, source, relevance=[0.0, 0.5, 0.5, 0.5])
    assert not torch.equal(given, hierarchical_ap_loss(q, c, source))


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (smooth_ap_loss, {"temperature": 0.0}, "temperature must be positive"),
        (smooth_ap_loss, {"direction": "joint", **JOINT}, "has no form for losses on ranks"),
        (smooth_recall_loss, {"ks": (0,)}, "ks must be cut-offs"),
        (smooth_recall_loss, {"rank_temperature": -1.0}, "rank_temperature must be positive"),
        (smooth_ndcg_loss, {"gain": "log"}, "gain must be one of"),
        (smooth_ndcg_loss, {"gain": [1.0, 1.0, 2.0, 3.0]}, "gain must be 0 for level 0"),
        (hierarchical_ap_loss, {"relevance": [0.0, 1.0]}, "relevance must have L"),
    ],
)
def test_errors(loss: Any, options: dict[str, Any], message: str) -> None:
    q, c, levels = batch()
    with pytest.raises(ValueError, match=message):
        loss(q, c, DenseLevels(levels, L), **options)


def test_a_module_learns_an_order() -> None:
    """Gradient descent improves the graded order that the loss is about."""
    before, after = descend(grainrank.HierarchicalAPLoss(temperature=0.1))
    assert after < before - 0.15
