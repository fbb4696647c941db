"""Extreme inputs: finite results, no warning, and NaN that stays where it came in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lone_pairs import lone_pairs
from torch import Tensor

from grainrank import (
    DenseLevels,
    GrainKeys,
    LevelSource,
    level_statistics,
    multi_level_ranking_loss,
)
from grainrank.testing import DTYPES, Shape, make_inputs

N, M, D = 6, 9, 5
RULES = [
    {"positives": p, "negatives": n} for p in ("exact", "at_least") for n in ("lower", "unrelated")
]


def step(
    q: Tensor, c: Tensor, levels: LevelSource | None, backend: str, **options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss and gradients; the scale's last."""
    q, c = q.clone().requires_grad_(), c.clone().requires_grad_()
    scale = torch.tensor(options.pop("logit_scale", 5.0), requires_grad=True)
    loss = multi_level_ranking_loss(q, c, levels, logit_scale=scale, backend=backend, **options)  # type: ignore[arg-type]
    loss.sum().backward()
    assert q.grad is not None
    assert c.grad is not None
    assert scale.grad is not None
    return loss.detach(), q.grad, c.grad, scale.grad


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, D, generator=generator), torch.randn(M, D, generator=generator)


def dense(value: int = 0, max_level: int = 3) -> Tensor:
    return torch.full((N, M), value, dtype=torch.int8)


NOTHING: dict[str, Callable[[], LevelSource]] = {
    "all pairs ignored": lambda: DenseLevels(dense(-1), 3),
    "all pairs negative": lambda: DenseLevels(dense(0), 3),
    "all keys unknown": lambda: GrainKeys(torch.full((N, 2), -1), torch.full((M, 2), -1)),
    "all pairs excluded": lambda: GrainKeys(
        torch.zeros(N, 2).long(), torch.zeros(M, 2).long()
    ).exclude(torch.zeros(N).long(), torch.zeros(M).long()),
    "positives without negatives": lambda: DenseLevels(dense(3), 3),
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", NOTHING)
def test_nothing_to_rank(kind: str, reduction: str, backend: str) -> None:
    """The loss is exactly 0, and so are the gradients."""
    for rules in RULES:
        got = step(*data(), NOTHING[kind](), backend, reduction=reduction, **rules)
        assert got[0].shape == ((N,) if reduction == "none" else ())
        for x in got:
            assert (x == 0).all()


def test_stats_of_nothing(backend: str) -> None:
    for make in NOTHING.values():
        loss, stats = multi_level_ranking_loss(
            *data(),
            make(),
            temperature=0.1,
            return_stats=True,
            backend=backend,  # type: ignore[arg-type]
        )
        assert loss == 0
        for value in stats:
            assert torch.isfinite(value).all()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 9), (6, 1)])
def test_one_row_and_one_column(n: int, m: int, dtype: torch.dtype, backend: str) -> None:
    q, c = (x.to(dtype) for x in data())
    keys = torch.arange(9)[:, None] % 2
    got = step(q[:n], c[:m], GrainKeys(keys[:n], keys[:m]), backend)
    for x in got:
        assert torch.isfinite(x).all()
    if m == 1:
        assert got[0] == 0


def test_row_without_positive_gets_no_gradient(backend: str) -> None:
    levels = dense(0)
    levels[:, 1] = 2
    levels[3] = 0
    for reduction in ("mean", "none"):
        loss, d_q, d_c, _ = step(*data(), DenseLevels(levels, 3), backend, reduction=reduction)
        assert (d_q[3] == 0).all()
        assert (d_q[[0, 1, 2, 4, 5]] != 0).any(dim=1).all()
        # The row is as if it were not there.
        others = torch.arange(N) != 3
        q, c = data()
        without = step(q[others], c, DenseLevels(levels[others], 3), backend, reduction=reduction)
        torch.testing.assert_close(loss if reduction == "mean" else loss[others], without[0])
        torch.testing.assert_close(d_c, without[2])


def test_all_embeddings_equal(backend: str) -> None:
    """Every logit is the same: the loss is a count, log(1 + negatives / positives)."""
    q, c = torch.ones(N, D), torch.ones(M, D)
    levels = dense(0)
    levels[:, :2], levels[:, 2:5] = 1, 2
    loss, d_q, d_c, d_scale = step(q, c, DenseLevels(levels, 2), backend, level_weights=[1.0, 1.0])
    expected = torch.log(torch.tensor(1 + 4 / 2)) + torch.log(torch.tensor(1 + 6 / 3))
    torch.testing.assert_close(loss, expected)
    for x in (d_q, d_c, d_scale):
        torch.testing.assert_close(x, torch.zeros_like(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("scale", [1e4, 1e-4, 1e-30])
def test_huge_and_tiny_logits(scale: float, dtype: torch.dtype, backend: str) -> None:
    """Logits of +-1e4: the loss is as large as a gap of logits can be, and finite."""
    q, c = (x.to(dtype) for x in data())
    levels = dense(0)
    levels[:, :3] = torch.tensor([1, 2, -1], dtype=torch.int8)
    for rules in RULES:
        got = step(q, c, DenseLevels(levels, 2), backend, logit_scale=scale, **rules)
        for x in got:
            assert torch.isfinite(x).all()
        assert 0 <= float(got[0]) <= 4 * scale + 4
    assert (float(got[0]) > 100) == (scale > 1)


@pytest.mark.parametrize("negative", [False, True], ids=["lse", "neg_lse"])
@pytest.mark.parametrize("level_scales", [None, [1.0, 0.3, 1.7]], ids=["plain", "factors"])
def test_a_pair_alone_at_its_level(
    level_scales: list[float] | None, negative: bool, backend: str
) -> None:
    """Its logit and its lse are rounded alike, whatever the compiler fuses."""
    torch.testing.assert_close(*lone_pairs(backend, level_scales, negative))


def test_opposite_and_equal_vectors(backend: str) -> None:
    """The positive at +1e4, every negative at -1e4, and the other way round."""
    q = torch.eye(3)
    right = step(q, torch.cat([q, -q]), None, backend, logit_scale=1e4)
    assert right[0] == 0
    assert (right[1] == 0).all()
    wrong = step(q, torch.cat([-q, q]), None, backend, logit_scale=1e4)
    torch.testing.assert_close(wrong[0], torch.tensor(2e4))
    assert all(torch.isfinite(x).all() for x in wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_zero_vectors(dtype: torch.dtype, backend: str) -> None:
    """A zero vector has similarity 0; its gradient is finite (float16 cannot hold it)."""
    q, c = (x.to(dtype) for x in data())
    q[2] = 0
    c[4] = 0
    for x in step(q, c, None, backend):
        assert torch.isfinite(x).all()
    stats = level_statistics(q, c, logit_scale=5.0, backend=backend)  # type: ignore[arg-type]
    assert (stats.total[2] == 0).all()


def test_a_vector_shorter_than_the_least_norm(backend: str) -> None:
    """It is divided by 1e-12, a constant: torch's `normalize` has the gradient."""
    q, c = (x.double() for x in data())
    q[2] *= 1e-14
    c[4] *= 1e-14
    got = step(q, c, None, backend)
    q, c = q.requires_grad_(), c.requires_grad_()
    unit = (torch.nn.functional.normalize(x, dim=1) for x in (q, c))
    loss = multi_level_ranking_loss(*unit, None, logit_scale=5.0, normalize=False, backend=backend)  # type: ignore[arg-type, misc]
    for actual, expected in zip(got, [loss, *torch.autograd.grad(loss, [q, c])], strict=False):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("max_level", [1, 3])
def test_nan_stays_in_its_row(bad: float, max_level: int, backend: str) -> None:
    q, c = data()
    q[2, 1] = bad
    levels = torch.randint(
        -1, max_level + 1, (N, M), generator=torch.Generator().manual_seed(1), dtype=torch.int8
    )
    clean = step(*data(), DenseLevels(levels, max_level), backend, reduction="none")
    loss, d_q, _, _ = step(q, c, DenseLevels(levels, max_level), backend, reduction="none")
    others = torch.arange(N) != 2
    assert loss[2].isnan()
    assert d_q[2].isnan().all()
    torch.testing.assert_close(loss[others], clean[0][others])
    torch.testing.assert_close(d_q[others], clean[1][others])
    mean = multi_level_ranking_loss(
        q,
        c,
        DenseLevels(levels, max_level),
        temperature=0.2,
        backend=backend,  # type: ignore[arg-type]
    )
    assert mean.isnan()


def test_nan_shows_in_every_table(backend: str) -> None:
    """Also where a table is a maximum: a comparison with NaN must not lose it."""
    for bad_rows in ([2], [0, 5]):
        q, c = data()
        q[bad_rows] = torch.nan
        levels = DenseLevels(torch.arange(N * M).view(N, M).remainder(3).to(torch.int8), 2)
        stats = level_statistics(q, c, levels, temperature=0.5, backend=backend)._asdict()  # type: ignore[arg-type]
        for name in ("lse", "neg_lse", "total", "highest", "lowest"):
            columns = slice(1, None) if name == "neg_lse" else slice(None)
            assert stats[name][bad_rows, columns].isnan().all(), name
            others = [i for i in range(N) if i not in bad_rows]
            assert stats[name][others].isfinite().all(), name


def test_nan_in_one_candidate(backend: str) -> None:
    """It reaches every row that does not ignore the candidate, whatever level it has there."""
    q, c = data()
    c[7] = torch.nan
    levels = dense(0)
    levels[:, :3] = torch.tensor([1, 2, 3], dtype=torch.int8)
    levels[1, 7], levels[2, 7], levels[3, 7] = -1, 3, 1
    loss = multi_level_ranking_loss(
        q,
        c,
        DenseLevels(levels, 3),
        temperature=0.5,
        reduction="none",
        backend=backend,  # type: ignore[arg-type]
    )
    assert loss.isnan().tolist() == [True, False, True, True, True, True]


def test_long_rows_of_one_level(backend: str) -> None:
    """Many equal terms: log-sum-exp of 5000 equal logits is the logit plus log 5000."""
    q, c = torch.ones(2, 3), torch.ones(5000, 3)
    levels = torch.zeros(2, 5000, dtype=torch.int8)
    levels[:, 0] = 1
    stats = level_statistics(q, c, DenseLevels(levels), logit_scale=30.0, backend=backend)  # type: ignore[arg-type]
    expected = 30 + torch.log(torch.tensor(4999.0))
    torch.testing.assert_close(stats.lse[:, 0], expected.expand(2), rtol=1e-6, atol=0)
    assert stats.count.tolist() == [[4999, 1]] * 2


def test_more_negatives_than_any_block(backend: str) -> None:
    """M > N: hard negatives behind the paired candidates."""
    inputs = make_inputs(Shape(3, 4000, 8, 2))
    loss = multi_level_ranking_loss(*inputs[:2], temperature=0.5, backend=backend)  # type: ignore[arg-type]
    z = torch.nn.functional.normalize(inputs[0].double())
    z = z @ torch.nn.functional.normalize(inputs[1].double()).T / 0.5
    expected = torch.nn.functional.cross_entropy(z, torch.arange(3))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("huge", [0, 8], ids=["positive", "negative"])
def test_a_huge_logit_beside_which_all_others_vanish(huge: int, backend: str) -> None:
    """It is all of the sum: where its product was not rounded as for the tables, exp(z - lse) was
    off by a thousandth.
    """
    generator = torch.Generator().manual_seed(0)
    q = (1 + torch.rand(8, 1, generator=generator)).requires_grad_()
    c = torch.rand(9, 1, generator=generator)
    c[huge] = 2.3456789
    multi_level_ranking_loss(q, c, temperature=1e-4, normalize=False, backend=backend).backward()
    torch.testing.assert_close(q.grad, 1e4 / 8 * (c[huge] - c[:8]), rtol=2e-6, atol=0.0)
