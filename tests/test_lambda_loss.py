"""LambdaLoss against its definition, the published formula, and a public code."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import peers
import pytest
import torch
from torch import Tensor

from grainrank import DenseLevels, lambda_loss
from grainrank.heads.lambda_pairs import LambdaWeights
from grainrank.testing import Shape, make_dense_levels, make_inputs

N, M, D, L = 7, 23, 5, 3
SCHEMES = ("lambdarank", "ndcg2", "ndcg2++")
TEMPERATURE, SIGMA, MU = 0.2, 1.5, 4.0
SETTINGS: dict[str, Any] = {"temperature": TEMPERATURE, "sigma": SIGMA, "mu": MU}
Row = list[tuple[float, int]]  # similarity and level, in the candidates' order
GAINS: dict[str, Callable[[int], float]] = {"exp2": lambda y: 2.0**y - 1, "linear": float}


def batch(seed: int = 0, n: int = N, m: int = M) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, candidates and levels; row 2 has no positive, and candidate 4 is candidate 1."""
    inputs = make_inputs(Shape(n, m, D), torch.float64, seed=seed)
    levels = make_dense_levels(Shape(n, m, D), L, seed=seed)
    levels[2] = levels[2].clamp_max(0)
    inputs.candidates[4] = inputs.candidates[1]
    return inputs.queries, inputs.candidates, levels


def similarities(q: Tensor, c: Tensor) -> Tensor:
    return torch.nn.functional.normalize(q) @ torch.nn.functional.normalize(c).T


def rows(s: Tensor, levels: Tensor) -> list[Row]:
    return [
        [(float(s[i, j]), int(levels[i, j])) for j in range(s.shape[1]) if levels[i, j] >= 0]
        for i in range(s.shape[0])
    ]


def inverse_discount(rank: int) -> float:
    return 1 / math.log2(1 + rank)


def weight(scheme: str, a: int, b: int) -> float:
    """Of two ranks, for each unit of gain."""
    swap = abs(inverse_discount(a) - inverse_discount(b))
    apart = abs(inverse_discount(abs(a - b)) - inverse_discount(abs(a - b) + 1))
    return {"lambdarank": swap, "ndcg2": apart, "ndcg2++": swap + MU * apart}[scheme]


def of_row(row: Row, scheme: str, gain: str, k: int) -> float:
    best_first = sorted(range(len(row)), key=lambda j: (-row[j][0], j))
    rank = {j: place + 1 for place, j in enumerate(best_first)}
    listed = {j for j in rank if rank[j] <= k} | {j for j in rank if row[j][1] > 0}
    gains = [GAINS[gain](y) for _, y in row]
    ideal = sum(
        g * inverse_discount(place + 1)
        for place, g in enumerate(sorted(gains, reverse=True)[:k])
    )  # fmt: skip
    total = 0.0
    for a in listed:
        for b in listed:
            if row[a][1] <= row[b][1] or min(rank[a], rank[b]) > k:
                continue
            x = SIGMA * (row[a][0] - row[b][0]) / TEMPERATURE
            step = abs(gains[a] - gains[b]) / ideal * weight(scheme, rank[a], rank[b])
            total += step * math.log2(1 + math.exp(-x))
    return total


@pytest.mark.parametrize("gain", GAINS)
@pytest.mark.parametrize("k", [1, 3, 10, 40])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_equals_the_definition(scheme: str, k: int, gain: str) -> None:
    q, c, levels = batch(seed=k)
    found = rows(similarities(q, c), levels)
    expected = torch.tensor([of_row(r, scheme, gain, k) for r in found], dtype=torch.float64)
    source = DenseLevels(levels, L)
    options = {"k": k, "scheme": scheme, "gain": gain, **SETTINGS}
    losses = lambda_loss(q, c, source, reduction="none", **options)
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)
    assert losses[2] == 0
    mean = lambda_loss(q, c, source, **options)
    with_positive = int((levels > 0).any(dim=1).sum())
    torch.testing.assert_close(mean, expected.sum() / with_positive, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ties_rank_by_number(scheme: str) -> None:
    """Similarities that are exactly equal, in every row."""
    q = torch.eye(3, dtype=torch.float64)
    c = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]], dtype=q.dtype)
    levels = torch.tensor([[0, 0, 1, 2, -1], [2, 0, -1, 0, 1], [1, 2, 0, 0, 3]])
    expected = [of_row(r, scheme, "exp2", 2) for r in rows(q @ c.T, levels)]
    losses = lambda_loss(
        q, c, DenseLevels(levels, L), k=2, scheme=scheme, reduction="none", **SETTINGS
    )
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=q.dtype), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_of_ranks_far_apart(scheme: str) -> None:
    """Differences of discounts keep their digits in float32."""
    rank, other = torch.tensor([1, 2, 7, 10]), torch.tensor([2, 9, 30_000, 1_000_000])
    found = LambdaWeights(scheme, MU).of(rank, other, torch.float32)  # type: ignore[arg-type]
    expected = [weight(scheme, a, b) for a, b in zip(rank.tolist(), other.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=0.0)


def dense(q: Tensor, c: Tensor, levels: Tensor, scheme: str, k: int) -> Tensor:
    """The loss of all rows together, over all pairs of all candidates, with constant weights."""
    s = similarities(q, c)
    best_first = s.detach().masked_fill(levels < 0, -torch.inf)
    rank = 1 + best_first.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    listed = (levels > 0) | ((levels == 0) & (rank <= k))
    of_pair = [
        [torch.zeros(M, M, dtype=s.dtype), listed[i][:, None] & listed[i][None, :]]
        for i in range(len(s))
    ]
    total = s.new_zeros(())
    for i, (weights, pairs) in enumerate(of_pair):
        gains = 2.0 ** levels[i].clamp_min(0).double() - 1
        places = torch.arange(1, M + 1).double()
        ideal = (gains.sort(descending=True).values / torch.log2(1 + places))[:k].sum()
        pairs &= levels[i][:, None] > levels[i][None, :]
        pairs &= torch.minimum(rank[i][:, None], rank[i][None, :]) <= k
        for a, b in pairs.nonzero().tolist():
            weights[a, b] = weight(scheme, int(rank[i, a]), int(rank[i, b]))
            weights[a, b] *= (gains[a] - gains[b]).abs() / ideal
        x = SIGMA * (s[i][:, None] - s[i][None, :]) / TEMPERATURE
        total = total + (weights * torch.log2(1 + torch.exp(-x))).sum()
    return total


@pytest.mark.parametrize("workspace", [None, 1e-4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradient_of_the_dense_form(scheme: str, workspace: float | None) -> None:
    q, c, levels = batch(3)
    inputs = q.requires_grad_(), c.requires_grad_()
    ours = lambda_loss(
        *inputs, DenseLevels(levels, L), k=4, scheme=scheme, reduction="sum",
        workspace_mb=workspace, **SETTINGS,
    )  # fmt: skip
    theirs = dense(*inputs, levels, scheme, 4)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0.0)
    found, expected = (torch.autograd.grad(loss, inputs) for loss in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("direction", ["query_to_candidate", "candidate_to_query", "symmetric"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradcheck(scheme: str, direction: str) -> None:
    """Weights are constant where no two similarities change places."""
    q, c, levels = batch(5, 4, 9)
    source = DenseLevels(levels, L)
    c[4] += 0.1  # two that are equal would change places

    def loss(q: Tensor, c: Tensor) -> Tensor:
        return lambda_loss(
            q, c, source, k=3, scheme=scheme, direction=direction, matryoshka_dims=(3, 5),
            **SETTINGS,
        )  # fmt: skip

    inputs = q.requires_grad_(), c.requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-7, atol=1e-5)


def test_upstream_gradient_of_rows() -> None:
    q, c, levels = batch(1)
    q.requires_grad_()
    upstream = torch.linspace(-1, 2, N, dtype=q.dtype)
    losses = lambda_loss(q, c, DenseLevels(levels, L), reduction="none", k=4, **SETTINGS)
    (found,) = torch.autograd.grad(losses, q, upstream)
    for i in range(N):
        one = DenseLevels(levels[i : i + 1], L)
        loss = lambda_loss(q[i : i + 1], c, one, reduction="sum", k=4, **SETTINGS)
        (expected,) = torch.autograd.grad(loss, q)
        torch.testing.assert_close(found[i], upstream[i] * expected[i], rtol=1e-9, atol=1e-12)


def published(row: Row, scheme: str) -> float:
    """The untruncated formulas of the paper, over the places of the ranking, from the best on."""
    ranking = sorted(row, key=lambda pair: -pair[0])
    ideal = sum(
        (2**y - 1) / math.log2(place + 2)
        for place, y in enumerate(sorted((y for _, y in row), reverse=True))
    )
    if ideal == 0:
        return 0.0
    likelihood = 0.0
    for i, (s_i, y_i) in enumerate(ranking, start=1):
        for j, (s_j, y_j) in enumerate(ranking, start=1):
            if y_i > y_j:
                rho = abs(1 / math.log2(1 + i) - 1 / math.log2(1 + j))
                d = abs(i - j)
                delta = abs(1 / math.log2(1 + d) - 1 / math.log2(1 + (d + 1)))
                exponent = {"lambdarank": rho, "ndcg2": delta, "ndcg2++": rho + MU * delta}[scheme]
                exponent *= abs(2**y_i - 2**y_j) / ideal
                p = 1 / (1 + math.exp(-SIGMA * (s_i - s_j) / TEMPERATURE))
                likelihood += math.log2(p**exponent)
    return -likelihood


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_large_k_is_the_published_loss(scheme: str) -> None:
    q, c, levels = batch(8)
    c[4] += 0.1
    found = rows(similarities(q, c), levels)
    expected = torch.tensor([published(row, scheme) for row in found], dtype=torch.float64)
    for k in (M, 10 * M):
        losses = lambda_loss(
            q, c, DenseLevels(levels, L), k=k, scheme=scheme, reduction="none", **SETTINGS
        )
        torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)


class Scorer(torch.nn.Module):
    """A cross-encoder whose scores are known."""

    num_labels, device = 1, torch.device("cpu")

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def preprocess(self, pairs: list[Any], prompt: Any = None, task: Any = None) -> dict[str, Any]:
        return {"at": torch.tensor([int(document) for _, document in pairs])}

    def forward(self, tokens: dict[str, Any]) -> dict[str, Tensor]:
        return {"scores": self.scores[tokens["at"]]}


@pytest.mark.parametrize(
    ("scheme", "theirs"),
    [
        ("lambdarank", "LambdaRankScheme"),
        ("ndcg2", "NDCGLoss2Scheme"),
        ("ndcg2++", "NDCGLoss2PPScheme"),
    ],
)
def test_sentence_transformers(scheme: str, theirs: str) -> None:
    """Without a cut-off; its logits are float32, and it divides by the number of pairs."""
    peers.sentence_transformers()
    losses = importlib.import_module("sentence_transformers.cross_encoder.losses")
    q, c, levels = batch(4)
    c[4] += 0.1
    levels = levels.clamp_min(0)
    numbers = [[str(i * M + j) for j in range(M)] for i in range(N)]
    weighting = getattr(losses, theirs)(*([MU] if scheme == "ndcg2++" else []))
    s = similarities(q.requires_grad_(), c)
    module = losses.LambdaLoss(Scorer((s / TEMPERATURE).flatten()), weighting, sigma=SIGMA)
    expected = module([[""] * N, numbers], list(levels))
    source = DenseLevels(levels, L)
    total = lambda_loss(q, c, source, k=M, scheme=scheme, reduction="sum", **SETTINGS)
    pairs = sum(int((row[:, None] > row[None, :]).sum()) for row in levels)
    torch.testing.assert_close((total / pairs).float(), expected, rtol=1e-5, atol=0.0)
    found, wanted = (torch.autograd.grad(x, q)[0] for x in (total / pairs, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
