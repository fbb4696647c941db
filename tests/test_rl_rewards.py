"""Rewards of rollouts against slow loops from their definitions."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import pytest
import torch
from test_level_sources import sources
from torch import Tensor

from grainrank import DenseLevels, Diagonal
from grainrank.metrics import level_violation_rate
from grainrank.ranks import positive_ranks
from grainrank.rl import margin_reward, ranking_reward

G, N, M, D = 3, 9, 23, 4
Row = list[tuple[float, int]]  # similarity and level of the candidates, ignored ones left out
RULES: dict[str, dict[str, Any]] = {
    "macro": {},
    "micro": {"average": "micro"},
    "ndcg": {"rule": "ndcg", "gain": "linear"},
    "ndcg@5": {"rule": "ndcg", "gain": "exp2", "k": 5},
    "ndcg of gains": {"rule": "ndcg", "gain": [0, 0, 1, 5]},
}
MARGINS: dict[str, dict[str, Any]] = {
    "extremes": {"target": 0.25},
    "means": {"target": 0.25, "of": "means"},
    "wide": {"target": 1, "of": "means"},
}


def integers(low: int, high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def few_values(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Embeddings whose dot products are exact in every dtype, with many ties."""
    return integers(-1, 2, G, N, D, seed=1).to(dtype) / 2, integers(-1, 2, M, D, seed=2).to(dtype)


def graded() -> Tensor:
    """Levels [N, M]; row 0 is all negatives, row 1 all ignored, row 2 of one level, row 3 without
    negatives, row 4 without level 1.
    """
    levels = integers(-1, 4, N, M, seed=3)
    levels[0], levels[1], levels[2] = 0, -1, 2
    levels[3], levels[4] = levels[3].abs().clamp(min=1), levels[4].masked_fill(levels[4] == 1, -1)
    return levels


def concordance(row: Row, average: str = "macro") -> float:
    shares, right, pairs = [], 0, 0
    for a, b in itertools.product({y for _, y in row}, repeat=2):
        if a > b:
            order = [s > t for s, y in row for t, z in row if (y, z) == (a, b)]
            shares.append(sum(order) / len(order))
            right, pairs = right + sum(order), pairs + len(order)
    if not shares:
        return 0.0
    return sum(shares) / len(shares) if average == "macro" else right / pairs


def ndcg(row: Row, gain: Any, k: int = M) -> float:
    if len({y for _, y in row}) < 2:
        return 0.0
    gains = {"linear": [0, 1, 2, 3], "exp2": [0, 1, 3, 7]}.get(str(gain), gain)
    dcg = 0.0
    for j, (s, y) in enumerate(row):
        rank = 1 + sum(t >= s for i, (t, _) in enumerate(row) if i != j)
        dcg += gains[y] / math.log2(1 + rank) if rank <= k else 0
    best = sorted((gains[y] for _, y in row), reverse=True)[:k]
    ideal = sum(g / math.log2(2 + i) for i, g in enumerate(best))
    return dcg / ideal if ideal > 0 else 0.0


def slow_ranking(row: Row, rule: str = "concordance", **options: Any) -> float:
    return concordance(row, **options) if rule == "concordance" else ndcg(row, **options)


def slow_margin(row: Row, target: float, of: str = "extremes") -> float:
    by_level = {y: [s for s, z in row if z == y] for y in sorted({y for _, y in row})}
    if len(by_level) < 2:
        return 0.0
    spread = max(s for s, _ in row) - min(s for s, _ in row)
    if spread == 0:
        return -1.0
    shares = []
    for b, a in itertools.pairwise(by_level.values()):
        gap = min(a) - max(b) if of == "extremes" else sum(a) / len(a) - sum(b) / len(b)
        shares.append(max(-1.0, min(1.0, gap / spread / target)))
    return sum(shares) / len(shares)


def slow(reward: Any, r: Tensor, c: Tensor, levels: Tensor, **options: Any) -> Tensor:
    """Float64 [G, N]; of dot products."""
    out = [
        [
            reward([(s, y) for s, y in zip(row, of_row, strict=True) if y >= 0], **options)
            for row, of_row in zip(similarities, levels.tolist(), strict=True)
        ]
        for similarities in (r.double() @ c.double().T).tolist()
    ]
    return torch.tensor(out, dtype=torch.float64)


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


@functools.cache
def separated() -> tuple[Tensor, Tensor]:
    """Candidates [M, 1] in the order of their levels, the same for all rows, no two equal; the
    levels are as far apart as these spread.
    """
    level = integers(0, 4, M, seed=5)
    value = level + random(M, seed=6).sigmoid() / 8
    return value[:, None], level.expand(N, M)


# Against the definitions.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_ranking_equals_a_slow_loop(rule: str, dtype: torch.dtype, backend: str) -> None:
    r, c = few_values(dtype)
    reward = ranking_reward(
        r, c, DenseLevels(graded()), **RULES[rule], normalize=False, backend=backend
    )
    assert reward.dtype == (dtype if dtype == torch.float64 else torch.float32)
    expected = slow(slow_ranking, r, c, graded(), **RULES[rule])
    assert_close(reward, expected, dtype)
    assert len(expected.unique()) > G * N // 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rule", MARGINS)
def test_margin_equals_a_slow_loop(rule: str, dtype: torch.dtype, backend: str) -> None:
    r, c = few_values(dtype)
    reward = margin_reward(
        r, c, DenseLevels(graded()), **MARGINS[rule], normalize=False, backend=backend
    )
    assert reward.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert_close(reward, slow(slow_margin, r, c, graded(), **MARGINS[rule]), dtype)


def test_a_margin_between_its_bounds_equals_a_slow_loop(backend: str) -> None:
    """Of order and of gaps, both of which the many ties above hide."""
    c, levels = separated()
    c = torch.cat([c, random(M, 1, seed=7)], dim=1)
    r = torch.cat([torch.ones(G, N, 1), random(G, N, 1, seed=8) / 20], dim=2)
    for target in (0.05, 0.5):
        expected = slow(slow_margin, r, c, levels, target=target)
        found = margin_reward(
            r, c, DenseLevels(levels), target=target, normalize=False, backend=backend
        )
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    assert ((expected > 0.1) & (expected < 0.9)).all()


@pytest.mark.parametrize("name", sources(2, 2))
def test_every_source(name: str, backend: str) -> None:
    r, c = few_values()
    levels = sources(N, M)[name]
    block = levels.block(0, N, M)
    found = ranking_reward(r, c, levels, normalize=False, backend=backend)
    assert_close(found, slow(slow_ranking, r, c, block))
    found = margin_reward(r, c, levels, target=0.2, normalize=False, backend=backend)
    assert_close(found, slow(slow_margin, r, c, block, target=0.2))


def test_the_diagonal_is_the_default(backend: str) -> None:
    r, c = few_values()
    for reward in (ranking_reward, functools.partial(margin_reward, target=0.2)):
        assert torch.equal(reward(r, c, backend=backend), reward(r, c, Diagonal(), backend=backend))


@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "dot"])
def test_cosine_is_the_default(normalize: bool, backend: str) -> None:
    r, c = random(G, N, D), random(M, D, seed=1) * random(M, 1, seed=2).exp()
    levels = DenseLevels(graded())
    options: dict[str, Any] = {"backend": backend} | ({} if normalize else {"normalize": False})
    if normalize:
        r = r * 100
    u, v = (torch.nn.functional.normalize(x, dim=-1) if normalize else x for x in (r, c))
    expected = slow(slow_ranking, u, v, graded())
    assert_close(ranking_reward(r, c, levels, **options), expected)
    expected = slow(slow_margin, u, v, graded(), target=0.5, of="means")
    found = margin_reward(r, c, levels, target=0.5, of="means", **options)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_micro_is_the_share_of_pairs_in_the_right_order(backend: str) -> None:
    r, c = few_values()
    levels = DenseLevels(graded())
    macro, micro = (
        ranking_reward(r, c, levels, average=x, normalize=False, backend=backend)
        for x in ("macro", "micro")
    )
    for rollout, reward in zip(r, micro, strict=True):
        ranks = positive_ranks(rollout, c, levels, ties="pessimistic", normalize=False)
        assert_close(reward[3:], 1 - level_violation_rate(ranks)[3:])
    assert not torch.equal(macro, micro)


# Properties.


def test_the_order_of_candidates_changes_nothing(backend: str) -> None:
    r, c = few_values()
    order = torch.randperm(M, generator=torch.Generator().manual_seed(4))
    levels, other = DenseLevels(graded()), DenseLevels(graded()[:, order])
    for options in RULES.values():
        a, b = (
            ranking_reward(r, x, y, **options, normalize=False, backend=backend)
            for x, y in ((c, levels), (c[order], other))
        )
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)
    for options in MARGINS.values():
        a, b = (
            margin_reward(r, x, y, **options, normalize=False, backend=backend)
            for x, y in ((c, levels), (c[order], other))
        )
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "dot"])
def test_a_positive_factor_changes_nothing(normalize: bool, backend: str) -> None:
    r, c = random(G, N, D), random(M, D, seed=1)
    levels = DenseLevels(graded())
    factors = 2.0 ** integers(-3, 4, G, N, 1, seed=4)
    for options in RULES.values():
        a, b = (
            ranking_reward(x, c, levels, **options, normalize=normalize, backend=backend)
            for x in (r, r * factors)
        )
        assert torch.equal(a, b)
    for options in MARGINS.values():
        a, b = (
            margin_reward(x, c, levels, **options, normalize=normalize, backend=backend)
            for x in (r, r * factors)
        )
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", MARGINS)
def test_raising_all_similarities_changes_no_margin(rule: str, backend: str) -> None:
    r, c = few_values()
    shift = integers(-9, 10, G, N, 1, seed=4).float()
    higher = torch.cat([r, shift], dim=2), torch.cat([c, torch.full((M, 1), 3.0)], dim=1)
    a, b = (
        margin_reward(*x, DenseLevels(graded()), **MARGINS[rule], normalize=False, backend=backend)
        for x in ((r, c), higher)
    )
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("rule", [*RULES, *MARGINS])
def test_bounds(rule: str, backend: str) -> None:
    r, c = random(G, N, 2), random(M, 2, seed=1)
    levels = DenseLevels(graded())
    if rule in RULES:
        reward, lowest = ranking_reward(r, c, levels, **RULES[rule], backend=backend), 0
    else:
        reward, lowest = margin_reward(r, c, levels, **MARGINS[rule], backend=backend), -1
    assert ((lowest <= reward) & (reward <= 1)).all()
    assert len(reward.unique()) > 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_order_by_levels_and_its_reverse(dtype: torch.dtype, backend: str) -> None:
    c, levels = separated()
    r = torch.tensor([1.0, -1.0], dtype=dtype)[:, None, None].expand(2, N, 1)
    shared: dict[str, Any] = {"normalize": False, "backend": backend}
    for name, options in RULES.items():
        best, worst = ranking_reward(r, c.to(dtype), DenseLevels(levels), **options, **shared)
        assert (best == 1).all(), name
        if "ndcg" not in name:
            assert (worst == 0).all()
    for of in ("extremes", "means"):
        best, worst = margin_reward(
            r, c.to(dtype), DenseLevels(levels), target=0.2, of=of, **shared
        )
        assert (best == 1).all()
        assert (worst == -1).all()


@pytest.mark.parametrize("rule", RULES)
def test_no_order_gets_less_than_collapse(rule: str, backend: str) -> None:
    """Of all orders of five candidates: each row has one of its own."""
    orders = torch.tensor(list(itertools.permutations(range(5)))).float()  # [120, 5]
    levels = DenseLevels(torch.tensor([0, 0, 1, 2, 3]).expand(120, 5))
    rewards = ranking_reward(
        torch.stack([orders, torch.zeros(120, 5)]),
        torch.eye(5),
        levels,
        **RULES[rule],
        normalize=False,
        backend=backend,
    )
    assert rewards[0].max() == 1
    assert (rewards[1] <= rewards[0].min()).all()
    assert rule not in ("macro", "micro") or (rewards[1] == 0).all()


@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "dot"])
@pytest.mark.parametrize("what", ["rollouts", "candidates"])
def test_collapse_is_the_worst(what: str, normalize: bool, backend: str) -> None:
    """All candidates have one similarity, of equal ones up to rounding."""
    r, c = random(G, 6, 37) * 10, random(M, 37, seed=1)
    if what == "rollouts":
        r = torch.zeros_like(r)
    else:
        c = c[:1].expand(M, -1).contiguous()
    levels = DenseLevels(graded()[3:])
    options: dict[str, Any] = {"normalize": normalize, "backend": backend}
    for margin in MARGINS.values():
        assert (margin_reward(r, c, levels, **margin, **options) == -1).all()
    if what == "rollouts" or backend == "cpu":
        assert (ranking_reward(r, c, levels, **options) == 0).all()


def test_rounding_is_no_spread_and_small_gaps_are(backend: str) -> None:
    """Of candidates that are almost equal; what is left of them is judged as any other order."""
    base = torch.nn.functional.normalize(random(1, 16), dim=1)
    c, levels = separated()
    direction = torch.nn.functional.normalize(random(1, 16, seed=1), dim=1)
    lengths, steps = ((1, 1), (1e4, 1), (1, 1e4)), ((1e-8, -1), (3e-5, 1))
    for (of_q, of_c), (step, expected) in itertools.product(lengths, steps):
        reward = margin_reward(
            of_q * (base + direction)[None].expand(1, N, -1),
            of_c * (base + step * c * direction),
            DenseLevels(levels),
            target=0.1,
            normalize=False,
            backend=backend,
        )
        assert (reward == expected).all()


def test_rows_of_one_level_have_no_reward(backend: str) -> None:
    """Whatever the rollout, also one that collapses."""
    r, c = random(G, 3, D), random(M, D, seed=1)
    r[0] = 0
    levels = DenseLevels(graded()[:3], 3)
    for options in RULES.values():
        assert not ranking_reward(r, c, levels, **options, backend=backend).any()
    for options in MARGINS.values():
        assert not margin_reward(r, c, levels, **options, backend=backend).any()


def test_inputs_are_left_alone_and_no_gradient_flows(backend: str) -> None:
    r, c = (x.requires_grad_() for x in few_values())
    kept = r.detach().clone(), c.detach().clone()
    levels = DenseLevels(graded())
    ranking = ranking_reward(r, c, levels, backend=backend)
    margin = margin_reward(r, c, levels, target=0.2, backend=backend)
    for reward in (ranking, margin):
        assert reward.shape == (G, N)
        assert not reward.requires_grad
    assert torch.equal(r.detach(), kept[0])
    assert torch.equal(c.detach(), kept[1])
    again = ranking_reward(r.transpose(0, 1).contiguous().transpose(0, 1), c, levels)
    assert torch.equal(again, ranking_reward(r, c, levels))


def test_a_margin_of_a_reference(backend: str) -> None:
    """Pairs of level 0 above the row's ceiling take no part; the rollouts do not move it."""
    r, c = few_values()
    levels = graded().clamp(min=0)
    q_ref, c_ref = random(N, 5), random(M, 5, seed=1)
    cosine = torch.nn.functional.normalize(q_ref, dim=1) @ torch.nn.functional.normalize(c_ref).T
    expected = levels.clone()
    for i, j in itertools.product(range(N), range(M)):
        positives = cosine[i][levels[i] > 0]
        if levels[i, j] == 0 and len(positives) > 0 and cosine[i, j] > positives.max() - 0.3:
            expected[i, j] = -1
    assert not torch.equal(levels, expected)
    source = DenseLevels(levels).false_negative_margin(0.3, reference=(q_ref, c_ref))
    shared: dict[str, Any] = {"normalize": False, "backend": backend}
    for reward in (ranking_reward, functools.partial(margin_reward, target=0.2)):
        assert torch.equal(
            reward(r, c, source, **shared), reward(r, c, DenseLevels(expected, 3), **shared)
        )
