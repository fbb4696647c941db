"""What must hold for any inputs: symmetries, special cases, and pairs that count as absent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from grainrank import DenseLevels, Diagonal, GrainKeys, LevelSource, multi_level_ranking_loss
from grainrank.testing import Inputs, Shape, make_dense_levels, make_inputs

SHAPE = Shape(33, 70, 12, 3)
CLOSE = {"rtol": 1e-11, "atol": 1e-13}
Step = tuple[Tensor, Tensor, Tensor]


def batch(seed: int = 0) -> Inputs:
    return make_inputs(SHAPE, torch.float64, seed=seed)


def step(q: Tensor, c: Tensor, levels: LevelSource | None, backend: str, **options: Any) -> Step:
    """Losses of the rows, and the gradients for random gradients of them."""
    q, c = q.clone().requires_grad_(), c.clone().requires_grad_()
    options = {"temperature": 0.3, "reduction": "none"} | options
    losses = multi_level_ranking_loss(q, c, levels, backend=backend, **options)  # type: ignore[arg-type]
    weights = torch.linspace(-1, 2, len(losses), dtype=losses.dtype)
    losses.backward(weights)
    assert q.grad is not None
    assert c.grad is not None
    return losses.detach(), q.grad, c.grad


def same(a: Step, b: Step, **tolerance: float) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, **(tolerance or CLOSE))


def test_order_of_the_candidates(backend: str) -> None:
    inputs = batch()
    order = torch.randperm(SHAPE.M, generator=torch.Generator().manual_seed(0))
    losses, d_q, d_c = step(*inputs[:2], inputs.levels, backend)
    other = GrainKeys(inputs.query_keys, inputs.candidate_keys[order])
    same(step(inputs.queries, inputs.candidates[order], other, backend), (losses, d_q, d_c[order]))


def test_order_of_the_queries(backend: str) -> None:
    inputs = batch()
    order = torch.randperm(SHAPE.N, generator=torch.Generator().manual_seed(0))
    weight = torch.linspace(0.5, 2, SHAPE.N, dtype=torch.float64)

    def run(order: Tensor) -> Step:
        q = inputs.queries[order].clone().requires_grad_()
        c = inputs.candidates.clone().requires_grad_()
        levels = GrainKeys(inputs.query_keys[order], inputs.candidate_keys)
        losses = multi_level_ranking_loss(
            q,
            c,
            levels,
            temperature=0.3,
            reduction="none",
            backend=backend,  # type: ignore[arg-type]
        )
        losses.backward(weight[order])
        assert q.grad is not None
        assert c.grad is not None
        return losses.detach(), q.grad, c.grad

    losses, d_q, d_c = run(torch.arange(SHAPE.N))
    same(run(order), (losses[order], d_q[order], d_c))


def test_a_shift_of_all_logits_of_a_row(backend: str) -> None:
    """One more feature, the same for all candidates: a constant for each row of logits."""
    inputs = batch()
    shift = torch.linspace(-3, 3, SHAPE.N, dtype=torch.float64)[:, None]
    q = torch.cat([inputs.queries, shift], dim=1)
    c = torch.cat([inputs.candidates, torch.ones(SHAPE.M, 1, dtype=torch.float64)], dim=1)
    options = {"normalize": False, "temperature": 3.0}
    plain = step(*inputs[:2], inputs.levels, backend, **options)
    losses, d_q, d_c = step(q, c, inputs.levels, backend, **options)
    same((losses, d_q[:, :-1], d_c[:, :-1]), plain, rtol=1e-10, atol=1e-12)
    # The gradient of a row's logits sums to 0.
    torch.testing.assert_close(d_q[:, -1], torch.zeros_like(d_q[:, -1]), rtol=0, atol=1e-12)


def test_length_of_the_embeddings(backend: str) -> None:
    """Normalised: a longer vector has the same loss, and a gradient at right angles to it."""
    inputs = batch()
    losses, d_q, _ = step(*inputs[:2], inputs.levels, backend)
    longer = step(inputs.queries * 7, inputs.candidates, inputs.levels, backend)
    torch.testing.assert_close(longer[0], losses, **CLOSE)
    torch.testing.assert_close(longer[1] * 7, d_q, **CLOSE)
    along = (d_q * inputs.queries).sum(dim=1)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-12)


def test_temperature_is_one_over_logit_scale(backend: str) -> None:
    inputs = batch()
    options = {"temperature": None, "logit_scale": 4.0}
    same(
        step(*inputs[:2], inputs.levels, backend, temperature=0.25),
        step(*inputs[:2], inputs.levels, backend, **options),
    )


def test_one_level_is_info_nce(backend: str) -> None:
    """More candidates than queries: the further ones are hard negatives."""
    inputs = batch()
    got = step(*inputs[:2], None, backend)
    q, c = (x.clone().requires_grad_() for x in inputs[:2])
    logits = normalize(q) @ normalize(c).T / 0.3
    losses = cross_entropy(logits, torch.arange(SHAPE.N), reduction="none")
    losses.backward(torch.linspace(-1, 2, SHAPE.N, dtype=torch.float64))
    assert q.grad is not None
    assert c.grad is not None
    same(got, (losses.detach(), q.grad, c.grad))
    mean = multi_level_ranking_loss(*inputs[:2], temperature=0.3, backend=backend)  # type: ignore[arg-type]
    torch.testing.assert_close(mean, losses.detach().mean(), **CLOSE)


def test_one_level_with_several_positives_is_sup_con_in(backend: str) -> None:
    inputs = batch()
    positive = (inputs.levels.block(0, SHAPE.N, SHAPE.M) > 0).to(torch.int8)
    losses, *_ = step(*inputs[:2], DenseLevels(positive), backend)
    p = (normalize(inputs.queries) @ normalize(inputs.candidates).T / 0.3).softmax(dim=1)
    in_positives = (p * positive).sum(dim=1)
    has = positive.any(dim=1)
    torch.testing.assert_close(losses[has], -in_positives[has].log(), **CLOSE)
    assert (losses[~has] == 0).all()


@pytest.mark.parametrize("how", ["level", "exclude"])
def test_an_ignored_candidate_is_an_absent_one(how: str, backend: str) -> None:
    """Level -1 in a whole column, or an id: like taking the candidate out; gradient exactly 0."""
    inputs = batch()
    gone = torch.tensor([0, 3, 40, 69])
    kept = torch.ones(SHAPE.M, dtype=torch.bool).index_fill_(0, gone, False)
    if how == "level":
        dense = make_dense_levels(SHAPE, 4)
        dense[:, gone] = -1
        masked: LevelSource = DenseLevels(dense, 4)
        without: LevelSource = DenseLevels(dense[:, kept], 4)
    else:
        masked = inputs.levels.exclude(torch.full((SHAPE.N,), 5), torch.where(kept, 6, 5))
        without = GrainKeys(inputs.query_keys, inputs.candidate_keys[kept])
    losses, d_q, d_c = step(*inputs[:2], masked, backend)
    same((losses, d_q, d_c[kept]), step(inputs.queries, inputs.candidates[kept], without, backend))
    assert (d_c[gone] == 0).all()


def test_a_masked_pair_is_masked_before_the_exponential(backend: str) -> None:
    """However large its logit: an ignored pair leaves no trace."""
    q = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    c = torch.cat([q, 100 * q])
    ids = torch.arange(6)
    far = torch.cat([100 + ids, ids])
    options = {"normalize": False, "temperature": 0.05}
    losses, *_ = step(q, c, Diagonal().exclude(ids, far), backend, **options)
    mask = torch.eye(6, dtype=torch.bool)
    z = (q @ c.T / 0.05).double()
    z[:, 6:] = z[:, 6:].masked_fill(mask, -torch.inf)
    expected = cross_entropy(z, ids, reduction="none")
    torch.testing.assert_close(losses.double(), expected, rtol=1e-4, atol=1e-4)


def test_blocks_change_nothing() -> None:
    """From one row at a time to all at once."""
    inputs = make_inputs(Shape(129, 70, 12, 3), torch.float64)
    row = 70 * 8 / 2**20
    whole = step(*inputs[:2], inputs.levels, "cpu", reduction="none")
    for rows in (1, 2, 50, 64, 128, 500):
        options = {"workspace_mb": row * (rows + 0.5)}
        same(step(*inputs[:2], inputs.levels, "cpu", **options), whole)
    mean = multi_level_ranking_loss(*inputs[:2], inputs.levels, temperature=0.3, workspace_mb=row)
    used = (inputs.levels.block(0, 129, 70) > 0).any(dim=1).sum()
    torch.testing.assert_close(mean, whole[0].sum() / used, **CLOSE)


def test_reductions(backend: str) -> None:
    """The mean is over the rows with a positive at any level."""
    inputs = batch(2)
    keys = inputs.query_keys.clone()
    keys[:5] = -1
    levels = GrainKeys(keys, inputs.candidate_keys)
    losses, mean, total = (
        multi_level_ranking_loss(
            *inputs[:2],
            levels,
            temperature=0.3,
            reduction=reduction,
            backend=backend,  # type: ignore[arg-type]
        )
        for reduction in ("none", "mean", "sum")
    )
    used = int((levels.block(0, SHAPE.N, SHAPE.M) > 0).any(dim=1).sum())
    assert used < SHAPE.N
    assert (losses[:5] == 0).all()
    torch.testing.assert_close(total, losses.sum(), **CLOSE)
    torch.testing.assert_close(mean, losses.sum() / used, **CLOSE)


def test_at_least_equals_exact_where_it_should(backend: str) -> None:
    """The finest level has no finer one: with its weight alone, both choices of positives agree."""
    inputs = batch()
    options: dict[str, Any] = {"level_weights": [0.0, 0.0, 1.0]}
    same(
        step(*inputs[:2], inputs.levels, backend, **options),
        step(*inputs[:2], inputs.levels, backend, positives="at_least", **options),
    )
    options = {"level_weights": [1.0, 0.0, 0.0]}
    # Level 1 has one lower level, 0: both choices of negatives agree.
    same(
        step(*inputs[:2], inputs.levels, backend, **options),
        step(*inputs[:2], inputs.levels, backend, negatives="unrelated", **options),
    )
    exact = step(*inputs[:2], inputs.levels, backend, **options)[0]
    at_least = step(*inputs[:2], inputs.levels, backend, positives="at_least", **options)[0]
    has_level_1 = (inputs.levels.block(0, SHAPE.N, SHAPE.M) == 1).any(dim=1)
    assert (at_least <= exact + 1e-12)[has_level_1].all()
    assert (at_least < exact)[has_level_1].any()


def test_level_weights_are_linear(backend: str) -> None:
    inputs = batch()
    parts = [
        step(*inputs[:2], inputs.levels, backend, level_weights=[float(k == i) for k in range(3)])
        for i in range(3)
    ]
    mixed = step(*inputs[:2], inputs.levels, backend, level_weights=torch.tensor([2.0, 0.5, 3.0]))
    for got, a, b, c in zip(mixed, *parts, strict=True):
        torch.testing.assert_close(got, 2 * a + 0.5 * b + 3 * c, **CLOSE)
