"""The losses on ranks against the public codes' formulas: loss and gradients, float64.

Public codes take one batch that ranks itself, in which a query is a candidate of its own; what
becomes of that pair is theirs to say, and with us it is the levels'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import peers
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from grainrank import (
    DenseLevels,
    GrainKeys,
    hierarchical_ap_loss,
    smooth_ap_loss,
    smooth_ndcg_loss,
    smooth_recall_loss,
)

D = 6
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


def embeddings(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=generator, dtype=torch.float64).requires_grad_()


def classes(number: int, size: int) -> Tensor:
    """`[N]`, in order."""
    return torch.arange(number).repeat_interleave(size)


def agree(ours: Tensor, theirs: Tensor, x: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, **CLOSE)
    found, expected = (torch.autograd.grad(loss, x)[0] for loss in (ours, theirs))
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def step(x: Tensor, temperature: float) -> Tensor:
    """The public codes' sigmoid, whose exponent is bounded."""
    return 1 / (1 + torch.exp((-x / temperature).clamp(-50, 50)))


# SmoothAP


@pytest.fixture
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("temperature", [0.01, 0.1])
@pytest.mark.parametrize("size", [3, 4])
def test_smooth_ap_of_pytorch_metric_learning(size: int, temperature: float) -> None:
    """The query is its own positive; as many classes as there are items in each."""
    x, y = embeddings(size * size), classes(size, size)
    theirs = peers.metric_learning().SmoothAPLoss(temperature=temperature)(x, y)
    ours = smooth_ap_loss(x, x, GrainKeys(y[:, None], y[:, None]), temperature=temperature)
    agree(ours, theirs, x)


@pytest.mark.usefixtures("_float64")
def test_pytorch_metric_learning_takes_other_classes() -> None:
    """With other than as many classes it exchanges their number and their size, and takes so many
    consecutive items for a class: ours agrees on those, not on the labels.
    """
    x, y, exchanged = embeddings(8), classes(2, 4), classes(4, 2)
    theirs = peers.metric_learning().SmoothAPLoss(temperature=0.1)(x, y)

    def ours(y: Tensor) -> Tensor:
        return smooth_ap_loss(x, x, GrainKeys(y[:, None], y[:, None]), temperature=0.1)

    agree(ours(exchanged), theirs, x)
    assert (ours(y) - theirs).abs() > 0.01


def smooth_ap_code(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Smooth_AP, `SmoothAP.forward`: of embeddings of length 1."""
    s = x @ x.T
    total = x.new_zeros(())
    for i in range(len(x)):
        own = (y == y[i]).nonzero().flatten().tolist()
        for p in own:
            others = [j for j in range(len(x)) if j != p]
            rank = 1 + sum(step(s[i, j] - s[i, p], temperature) for j in others)
            among = 1 + sum(step(s[i, j] - s[i, p], temperature) for j in own if j != p)
            total = total + among / rank / len(own) / len(x)
    return 1 - total


@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_smooth_ap_of_the_public_code(temperature: float) -> None:
    x, y = embeddings(10), classes(2, 5)
    ours = smooth_ap_loss(x, x, GrainKeys(y[:, None], y[:, None]), temperature=temperature)
    agree(ours, smooth_ap_code(normalize(x), y, temperature), x)


def test_smooth_ap_without_the_query() -> None:
    """The pair of a query with itself, always the first, flatters; `exclude` leaves it out."""
    x, y, ids = embeddings(10), classes(2, 5), torch.arange(10)
    levels = GrainKeys(y[:, None], y[:, None])
    with_it = smooth_ap_loss(x, x, levels)
    assert smooth_ap_loss(x, x, levels.exclude(ids, ids)) > with_it


# HAPPIER


def happier_code(
    x: Tensor, labels: Tensor, alpha: float, tau: float, rho: float, offset: float, delta: float
) -> Tensor:
    """HAPPIER, `HAPLoss` with its defaults (`with_hrank=False`, start 1/2) and relevance "pop", of
    embeddings of length 1; labels `[N, L]` by which the level is the count of equal ones.
    """
    n, finest = labels.shape
    s = x @ x.T
    total = x.new_zeros(())
    for i in range(n):
        level = (labels[i] == labels).sum(dim=1).tolist()
        relevance = [(y / (finest - 1)) ** alpha / level.count(y) for y in level]
        score = x.new_zeros(())
        for p in range(n):
            rank, hrank = x.new_ones(()), relevance[p]
            for j in range(n):
                if j == p:
                    continue
                difference = s[i, j] - s[i, p]
                if level[j] >= level[p]:
                    rank = rank + float(difference >= 0)
                elif difference <= 0:
                    rank = rank + step(difference, tau)
                elif difference <= delta:
                    rank = rank + 0.5 + step(difference, tau)
                else:
                    rank = rank + rho * (difference - delta) + offset
                hrank = hrank + min(relevance[j], relevance[p]) * float(difference >= 0)
            score = score + hrank / rank
        total = total + (1 - score / sum(relevance)) / n
    return total


def hierarchy() -> Tensor:
    """Labels `[12, 3]`, coarse to fine; a label of a grain is found in one node of the coarser."""
    i = torch.arange(12)
    return torch.stack([i // 6, i // 3, i // 2 + 10 * (i // 3)], dim=1)


@pytest.mark.parametrize("seed", range(3))
def test_hierarchical_ap_of_the_public_code(seed: int) -> None:
    """The query is its own positive, of the finest level, and counts in that level's relevance;
    the public relevance has another divisor, which the loss does not see.
    """
    x, labels = embeddings(12, seed), hierarchy()
    theirs = happier_code(normalize(x), labels, 1.0, 0.01, 100.0, 1.44, 0.05)
    agree(hierarchical_ap_loss(x, x, GrainKeys(labels, labels)), theirs, x)


def test_hierarchical_ap_with_another_temperature() -> None:
    x, labels = embeddings(12), hierarchy()
    theirs = happier_code(normalize(x), labels, 1.0, 0.05, 100.0, 1.44, 0.05)
    agree(hierarchical_ap_loss(x, x, GrainKeys(labels, labels), temperature=0.05), theirs, x)


def test_relevance_with_an_exponent() -> None:
    """`alpha` of the public code: numbers of one's own where all rows have the same counts."""
    x = embeddings(8)
    i = torch.arange(8)
    labels = torch.stack([i // 4, i // 2], dim=1)
    theirs = happier_code(normalize(x), labels, 2.0, 0.01, 100.0, 1.44, 0.05)
    of_levels = [0.0, (1 / 2) ** 2 / 2, 1.0 / 2]  # two candidates of each level in a row
    ours = hierarchical_ap_loss(x, x, GrainKeys(labels, labels), relevance=of_levels)
    agree(ours, theirs, x)


# Recall at k


def recall_code(
    x: Tensor, y: Tensor, ks: list[int], temperatures: list[float], anneal: float
) -> Tensor:
    """RecallatK_surrogate, `RecallatK.forward` without mixup, summed over the queries of a batch
    of classes of equal size; of embeddings of length 1.
    """
    s = x @ x.T
    n = len(x)
    total = x.new_zeros(())
    for i in range(n):
        others = [p for p in range(n) if y[p] == y[i] and p != i]
        for k, temperature in zip(ks, temperatures, strict=True):
            found = x.new_zeros(())
            for p in others:
                # The query itself is among those that may stand before p.
                rank = 1 + sum(step(s[i, j] - s[i, p], anneal) for j in range(n) if j != p)
                found = found + step(k - rank, temperature)
            total = total + found.clamp_max(k) / min(k, len(others)) / len(ks)
    return 1 - total / n


def without_self(y: Tensor) -> DenseLevels:
    """The query itself as a negative, as the public code has it."""
    levels = (y[:, None] == y[None, :]).to(torch.int8)
    return DenseLevels(levels.fill_diagonal_(0), 1)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_recall_of_the_public_code(temperature: float) -> None:
    """For k of as many as there are positives, and one temperature of the ranks."""
    x, y = embeddings(12), classes(3, 4)
    ks = [3, 4, 8]
    theirs = recall_code(normalize(x), y, ks, [temperature] * 3, 0.05)
    ours = smooth_recall_loss(
        x, x, without_self(y), ks=ks, temperature=0.05, rank_temperature=temperature
    )
    agree(ours, theirs, x)


def test_recall_with_a_temperature_for_each_k() -> None:
    x, y = embeddings(12), classes(3, 4)
    theirs = recall_code(normalize(x), y, [4, 8], [1.0, 2.0], 0.05)
    parts = [
        smooth_recall_loss(x, x, without_self(y), ks=[k], temperature=0.05, rank_temperature=t)
        for k, t in ((4, 1.0), (8, 2.0))
    ]
    agree((parts[0] + parts[1]) / 2, theirs, x)


def test_recall_at_fewer_than_the_positives() -> None:
    """The public code divides by k there, and gives no more than k; ours by the positives."""
    x, y = embeddings(12), classes(3, 4)
    theirs = recall_code(normalize(x), y, [1], [1.0], 0.05)
    of_rows = smooth_recall_loss(
        x, x, without_self(y), ks=[1], temperature=0.05, reduction="none"
    )  # fmt: skip
    found = 3 * (1 - of_rows)  # positives within, of 3
    agree((1 - found.clamp_max(1)).mean(), theirs, x)
    assert (of_rows.mean() - theirs).abs() > 0.01


def test_recall_with_the_query_left_out() -> None:
    """Where the query is no candidate, ranks are one lower: k as published means k, not k - 1."""
    x, y, ids = embeddings(12), classes(3, 4), torch.arange(12)
    excluded = GrainKeys(y[:, None], y[:, None]).exclude(ids, ids)
    options: dict[str, Any] = {"temperature": 1e-3}  # the query's step is 1
    torch.testing.assert_close(
        smooth_recall_loss(x, x, excluded, ks=[3, 4], **options),
        smooth_recall_loss(x, x, without_self(y), ks=[4, 5], **options),
        **CLOSE,
    )


# nDCG


def approx_ndcg_code(s: Tensor, levels: Tensor, alpha: float) -> Tensor:
    """allRank, `approxNDCGLoss`: of the scores `[N, M]`, with gains 2^y - 1."""
    total = s.new_zeros(())
    for row, y in zip(s, levels.tolist(), strict=True):
        kept = [j for j in range(len(y)) if y[j] >= 0]
        best = sorted((y[j] for j in kept), reverse=True)
        ideal = sum((2**level - 1) / torch.log2(torch.tensor(2.0 + i).double())
                    for i, level in enumerate(best))  # fmt: skip
        for p in kept:
            above = (torch.sigmoid(-alpha * (row[p] - row[j])) for j in kept if j != p)
            position = 1 + sum(h.clamp_min(1e-10) for h in above)
            total = total + (2 ** y[p] - 1) / ideal / torch.log2(1 + position)
    return -total / len(s)


@pytest.mark.parametrize("alpha", [1.0, 10.0])
def test_ndcg_of_allrank(alpha: float) -> None:
    """Its loss is ours less 1; padded items are those of level -1."""
    x, c = embeddings(4), embeddings(9, seed=1)
    levels = torch.randint(-1, 4, (4, 9), generator=torch.Generator().manual_seed(0))
    levels[:, 0] = 2
    theirs = approx_ndcg_code(normalize(x) @ normalize(c).T, levels, alpha)
    ours = smooth_ndcg_loss(x, c, DenseLevels(levels, 3), gain="exp2", temperature=1 / alpha)
    agree(ours, 1 + theirs, x)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "smooth-ap": smooth_ap_loss,
    "recall": smooth_recall_loss,
    "ndcg": smooth_ndcg_loss,
    "hierarchical-ap": hierarchical_ap_loss,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rows_without_a_positive_are_left_out(name: str) -> None:
    """The public codes have none, or count them."""
    x, c = embeddings(4), embeddings(9, seed=1)
    levels = torch.zeros(4, 9, dtype=torch.int8)
    levels[:3, :2] = 1
    loss = FUNCTIONS[name](x, c, DenseLevels(levels, 1))
    of_rows = FUNCTIONS[name](x, c, DenseLevels(levels, 1), reduction="none")
    assert of_rows[3] == 0
    torch.testing.assert_close(loss, of_rows[:3].mean(), **CLOSE)
