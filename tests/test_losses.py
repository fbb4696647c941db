"""Every loss against its formula (loops.py): value and gradients, in every direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import loops
import pytest
import torch
from loops import Levels
from torch import Tensor
from torch.nn.functional import normalize

import grainrank
from grainrank import DenseLevels, GrainKeys, LevelSource

N, M, D, L = 9, 13, 6, 3
SCALE = 3.0
TEMPERATURES = (0.5, 0.4, 0.2)
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}

Loop = Callable[[Tensor, Levels], Tensor]


def at_temperatures(s: Tensor) -> list[Tensor]:
    return [s / t for t in TEMPERATURES]


def same(z: Tensor) -> list[Tensor]:
    return [z] * L


def by_level(margin: float) -> Callable[[int, int], float]:
    return lambda a, b: margin * (a - b)


MARGINS = torch.arange(16.0).reshape(4, 4) / 10
scaled = {"logit_scale": SCALE}
# Name, loss, its own options, and the formula on similarities * scale; scale 1 where the loss has
# scales of its own.
CASES: dict[str, tuple[Callable[..., Any], dict[str, Any], float, Loop]] = {
    "info_nce": (grainrank.info_nce_loss, scaled, SCALE, loops.info_nce),
    "sup_con": (grainrank.sup_con_loss, scaled, SCALE, loops.sup_con),
    "hard_negative_nce": (
        grainrank.hard_negative_nce_loss,
        {**scaled, "hardness": 0.7},
        SCALE,
        lambda z, y: loops.hard_negative_nce(z, y, 0.7),
    ),
    **{
        f"rince-{form}": (
            grainrank.rince_loss,
            {**scaled, "form": form},
            SCALE,
            lambda z, y, form=form: loops.rince(same(z), y, form),
        )
        for form in ("in", "out", "out-in")
    },
    **{
        f"rince-{form}-temperatures": (
            grainrank.rince_loss,
            {"level_temperatures": TEMPERATURES, "form": form},
            1.0,
            lambda s, y, form=form: loops.rince(at_temperatures(s), y, form),
        )
        for form in ("in", "out", "out-in")
    },
    **{
        f"hmlc-{form}": (
            grainrank.hmlc_loss,
            {**scaled, "form": form},
            SCALE,
            lambda z, y, form=form: loops.hmlc(z, y, form, L),
        )
        for form in ("hmc", "hce", "hmce")
    },
    "csl": (
        grainrank.csl_loss,
        {**scaled, "margins": [0.5, 0.3, 0.1]},
        SCALE,
        lambda z, y: loops.csl(z, y, [0.5, 0.3, 0.1]),
    ),
    "pairwise": (
        grainrank.pairwise_ranking_loss,
        {**scaled, "margin": 0.4},
        SCALE,
        lambda z, y: loops.pairwise(z, y, by_level(0.4), "row"),
    ),
    "pairwise-margins": (
        grainrank.pairwise_ranking_loss,
        {**scaled, "margin": MARGINS},
        SCALE,
        lambda z, y: loops.pairwise(z, y, lambda a, b: float(MARGINS[a, b]), "row"),
    ),
    "cosent": (
        grainrank.cosent_loss,
        scaled,
        SCALE,
        lambda z, y: loops.pairwise(z, y, by_level(0.0), "batch"),
    ),
    "list_net": (grainrank.list_net_loss, scaled, SCALE, loops.list_net),
    "softmax": (
        grainrank.softmax_ranking_loss,
        scaled,
        SCALE,
        lambda z, y: loops.softmax_ranking(z, y, float),
    ),
    "softmax-gains": (
        grainrank.softmax_ranking_loss,
        {**scaled, "gains": [0.0, 2.0, 5.0]},
        SCALE,
        lambda z, y: loops.softmax_ranking(z, y, lambda k: (0, 0.0, 2.0, 5.0)[k]),
    ),
    "unique_softmax": (
        grainrank.unique_softmax_loss,
        scaled,
        SCALE,
        lambda z, y: loops.unique_softmax(z, y, lambda k: 2**k - 1),
    ),
    "circle": (
        grainrank.circle_loss,
        {"gamma": 8.0, "margin": 0.3},
        1.0,
        lambda s, y: loops.circle(s, y, 8.0, 0.3),
    ),
    "multi_similarity": (
        grainrank.multi_similarity_loss,
        {"alpha": 2.0, "beta": 9.0, "base": 0.4},
        1.0,
        lambda s, y: loops.multi_similarity(s, y, 2.0, 9.0, 0.4),
    ),
}
# Coefficients of the batch, not of a row; the loops of these give one number.
OF_THE_BATCH = ("hmlc", "cosent")


def source() -> LevelSource:
    """Levels 0..3 and ignored pairs; row 2 has no positive, row 3 no negative, column 4 neither."""
    generator = torch.Generator().manual_seed(3)
    levels = torch.randint(-1, L + 1, (N, M), generator=generator)
    levels[torch.rand(N, M, generator=generator) < 0.4] = 0
    levels[2] = levels[2].clamp_max(0)
    levels[3, levels[3] == 0] = 1
    levels[:, 4] = -1
    return DenseLevels(levels, L)


def embeddings(*rows: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(rows))
    return [
        torch.randn(n, D, generator=generator, dtype=torch.float64).requires_grad_() for n in rows
    ]


def mean(losses: Tensor, y: Levels) -> Tensor:
    if losses.dim() == 0:
        return losses
    return losses.sum() / max(1, sum(any(level > 0 for level in row) for row in y))


def transposed(y: Levels) -> Levels:
    return [list(column) for column in zip(*y, strict=True)]


def agree(ours: Tensor, formula: Tensor, inputs: Sequence[Tensor]) -> None:
    torch.testing.assert_close(ours, formula, **CLOSE)
    a, b = (torch.autograd.grad(loss, inputs, retain_graph=True) for loss in (ours, formula))
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, **CLOSE)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("direction", ["query_to_candidate", "candidate_to_query", "symmetric"])
def test_loss(name: str, direction: str, backend: str) -> None:
    loss, options, scale, formula = CASES[name]
    q, c = embeddings(N, M)
    y = source().block(0, N, M).tolist()
    z = scale * normalize(q) @ normalize(c).T
    sides = {
        "query_to_candidate": [(z, y)],
        "candidate_to_query": [(z.T, transposed(y))],
        "symmetric": [(z, y), (z.T, transposed(y))],
    }[direction]
    expected = torch.stack([mean(formula(*side), side[1]) for side in sides]).mean()
    ours = loss(q, c, source(), direction=direction, backend=backend, **options)
    agree(ours, expected, [q, c])


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith(OF_THE_BATCH)])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_reduction(name: str, reduction: str, backend: str) -> None:
    """Rows without positives have loss 0."""
    loss, options, scale, formula = CASES[name]
    q, c = embeddings(N, M)
    z = scale * normalize(q) @ normalize(c).T
    expected = formula(z, source().block(0, N, M).tolist())
    ours = loss(q, c, source(), reduction=reduction, backend=backend, **options)
    assert ours.shape == ((N,) if reduction == "none" else ())
    weight = torch.arange(1.0, N + 1).double() if reduction == "none" else torch.ones(N).double()
    agree((ours * weight).sum() if reduction == "none" else ours, (expected * weight).sum(), [q, c])


@pytest.mark.parametrize("name", CASES)
def test_prefixes_are_separate_calls(name: str, backend: str) -> None:
    """Each normalised by itself, weighted, and summed."""
    loss, options, _, _ = CASES[name]
    q, c = embeddings(N, M)
    expected = sum(
        w * loss(q[:, :d], c[:, :d], source(), backend="reference", **options)
        for d, w in ((2, 0.5), (5, 2.0))
    )
    ours = loss(
        q, c, source(), backend=backend, matryoshka_dims=(5, 2), matryoshka_weights=(2.0, 0.5),
        **options,
    )  # fmt: skip
    agree(ours, expected, [q, c])


@pytest.mark.parametrize("direction", ["query_to_candidate", "symmetric"])
@pytest.mark.parametrize("name", CASES)
def test_memory_is_more_candidates_without_gradient(
    name: str, direction: str, backend: str
) -> None:
    """The rows see them; they have no rows or columns of their own."""
    loss, options, scale, formula = CASES[name]
    q, c = embeddings(N, M)
    y = source().block(0, N, M).tolist()
    split = 10
    every = torch.cat([c[:split], c[split:].detach()])
    z = scale * normalize(q) @ normalize(every).T
    losses = [mean(formula(z, y), y)]
    if direction == "symmetric":
        by_column = transposed(y)[:split]
        losses.append(mean(formula(z.T[:split], by_column), by_column))
    ours = loss(
        q, c[:split], source(), memory=c[split:], direction=direction, backend=backend, **options
    )
    agree(ours, torch.stack(losses).mean(), [q, c])


@pytest.mark.parametrize("name", CASES)
def test_nothing_to_rank(name: str, backend: str) -> None:
    """No positive, no negative, or no pair at all: finite, with a gradient of 0."""
    loss, options, _, _ = CASES[name]
    for level in (0, -1):
        q, c = embeddings(N, M)
        levels = DenseLevels(torch.full((N, M), level), L)
        for direction in ("query_to_candidate", "symmetric"):
            value = loss(q, c, levels, backend=backend, direction=direction, **options)
            assert value == 0
            gradients = torch.autograd.grad(value, [q, c])
            assert all((g == 0).all() for g in gradients)
    q, c = embeddings(N, M)
    value = loss(q, c, DenseLevels(torch.full((N, M), L), L), backend=backend, **options)
    value.backward()
    assert value.isfinite()
    assert q.grad is not None
    assert q.grad.isfinite().all()


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case[1] is scaled])
def test_far_apart_logits(name: str, backend: str) -> None:
    """Logits of +-1e4 in float32 give finite losses and gradients."""
    loss = CASES[name][0]
    q, c = (x.detach().float().requires_grad_() for x in embeddings(N, M))
    value = loss(q, c, source(), backend=backend, logit_scale=1e4)
    value.backward()
    assert value.isfinite()
    assert q.grad is not None
    assert q.grad.isfinite().all()


def test_learnable_level_temperatures(backend: str) -> None:
    q, c = embeddings(N, M)
    t = torch.tensor(TEMPERATURES, dtype=torch.float64, requires_grad=True)
    y = source().block(0, N, M).tolist()
    s = normalize(q) @ normalize(c).T
    for form in ("in", "out"):
        expected = mean(loops.rince([s / x for x in t], y, form), y)
        ours = grainrank.rince_loss(
            q, c, source(), level_temperatures=t, form=form, backend=backend
        )
        agree(ours, expected, [q, c, t])


@pytest.mark.parametrize("rules", [("exact", "lower"), ("at_least", "unrelated")])
def test_learnable_temperatures_of_the_main_loss(rules: Any, backend: str) -> None:
    """Each term alone at its temperature, weighted."""
    q, c = embeddings(N, M)
    t = torch.tensor(TEMPERATURES, dtype=torch.float64, requires_grad=True)
    weights = [0.3, 0.7, 1.1]
    options = {"positives": rules[0], "negatives": rules[1], "backend": backend}
    expected = torch.zeros((), dtype=torch.float64)
    for k in range(L):
        only = [w if i == k else 0.0 for i, w in enumerate(weights)]
        expected = expected + grainrank.multi_level_ranking_loss(
            q, c, source(), temperature=t[k], level_weights=only, **options
        )
    ours = grainrank.multi_level_ranking_loss(
        q, c, source(), level_temperatures=t, level_weights=weights, **options
    )
    agree(ours, expected, [q, c, t])


def test_level_scales_and_bias_of_the_tables(backend: str) -> None:
    """Against tables of dense logits that have them."""
    q, c = embeddings(N, M)
    scales = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
    level = source().block(0, N, M)
    z = SCALE * scales[level.clamp_min(0).long()] * (normalize(q) @ normalize(c).T) + bias
    expected = grainrank.reference.level_tables(z, level, L)
    stats = grainrank.level_statistics(
        q, c, source(), logit_scale=SCALE, level_scales=scales, logit_bias=bias, backend=backend
    )
    there = stats.count > 0
    for name in ("lse", "neg_lse", "total", "highest", "lowest"):
        a, b = getattr(stats, name), getattr(expected, name)
        torch.testing.assert_close(a, b, **CLOSE)
        where = there & (torch.arange(L + 1) > 0) if name == "neg_lse" else there
        weight = torch.rand(N, L + 1, generator=torch.Generator().manual_seed(0)).double() * where
        agree((a * weight).sum(), (b * weight).sum(), [q, c, scales, bias])


@pytest.mark.parametrize("memory", [False, True])
def test_siglip(memory: bool, backend: str) -> None:
    q, c = embeddings(N, M)
    split = 10 if memory else M
    scale = torch.tensor(SCALE, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-1.2, dtype=torch.float64, requires_grad=True)
    weights = [0.5, 1.0, 1.5, 2.0]
    every = torch.cat([c[:split], c[split:].detach()])
    z = scale * normalize(q) @ normalize(every).T
    expected = loops.sigmoid(z, source().block(0, N, M).tolist(), bias, weights) / N
    ours = grainrank.siglip_loss(
        q, c[:split], source(), logit_scale=scale, logit_bias=bias, level_weights=weights,
        memory=c[split:] if memory else None, backend=backend,
    )  # fmt: skip
    agree(ours, expected, [q, c, scale, bias])


@pytest.mark.parametrize("keys", [False, True], ids=["diagonal", "keys"])
def test_joint(keys: bool, backend: str) -> None:
    """All four blocks; with keys, others that share one are no negatives."""
    q, c = embeddings(N, M)
    q_keys = torch.arange(N)[:, None] % 4
    c_keys = torch.arange(M)[:, None] % 5
    levels = GrainKeys(q_keys, c_keys) if keys else None

    def block(a: Tensor, b: Tensor, rows: int) -> Levels:
        shared = (a[:rows] == b.T).long() if keys else torch.zeros(rows, len(b)).long()
        shared[torch.arange(rows), torch.arange(rows)] = -1
        return shared.tolist()  # type: ignore[no-any-return]

    y = ((q_keys == c_keys.T) if keys else torch.eye(N, M)).long().tolist()
    u, v = normalize(q), normalize(c)
    expected = loops.joint_info_nce(
        SCALE * u @ v.T,
        y,
        (SCALE * u @ u.T, block(q_keys, q_keys, N)),
        (SCALE * v[:N] @ v.T, block(c_keys, c_keys, N)),
    )
    ours = grainrank.info_nce_loss(
        q, c, levels, logit_scale=SCALE, direction="joint", backend=backend
    )
    agree(ours, mean(expected, y), [q, c])


def test_head_loss(backend: str) -> None:
    """A user's head gets every option."""
    q, c = embeddings(N, M)

    def head(tables: Any) -> Tensor:
        (t,) = tables
        return grainrank.heads.sup_con(t)

    options = {"direction": "symmetric", "matryoshka_dims": (3, 6), "temperature": 0.3}
    ours = grainrank.head_loss(head, q, c, source(), backend=backend, **options)  # type: ignore[arg-type]
    theirs = grainrank.sup_con_loss(q, c, source(), backend=backend, **options)  # type: ignore[arg-type]
    agree(ours, theirs, [q, c])
