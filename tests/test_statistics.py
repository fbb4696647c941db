"""`return_stats=True` against a slow count over pairs, and the public tables."""

from __future__ import annotations

import itertools
from typing import Any

import definition
import pytest
import torch
from definition import wide

from grainrank import (
    DenseLevels,
    LossStatistics,
    level_statistics,
    multi_level_nce,
    multi_level_ranking_loss,
)
from grainrank.heads import multi_level_nce_gradient
from grainrank.reference import EMPTY
from grainrank.testing import Inputs, Shape, make_dense_levels, make_inputs

SHAPE = Shape(21, 34, 6)
L = 4
SCALE = 3.0


def batch() -> tuple[Inputs, DenseLevels]:
    dense = make_dense_levels(SHAPE, L, seed=5)
    dense[2] = 0  # no positive
    dense[3] = -1  # nothing at all
    dense[:, 5] = 0
    dense[dense == 3] = 2  # level 3 is empty in the whole batch
    return make_inputs(SHAPE, torch.float64, seed=5), DenseLevels(dense, L)


def slow(inputs: Inputs, levels: DenseLevels, positives: str, negatives: str) -> dict[str, Any]:
    level = levels.tensors[0].tolist()
    q, c = (definition.unit(wide(x), True) for x in inputs[:2])
    s = (q @ c.T).astype(float)
    out: dict[str, Any] = {"rows_used": sum(any(y > 0 for y in row) for row in level)}
    pairs = [(y, s[i, j]) for i, row in enumerate(level) for j, y in enumerate(row)]
    of_level = [[x for y, x in pairs if y == k] for k in range(L + 1)]
    out["level_pairs"] = [len(x) for x in of_level]
    out["level_similarity"] = [sum(x) / len(x) if x else 0.0 for x in of_level]
    wrong = adjacent = 0
    for i, row in enumerate(level):
        means = []
        for k in range(L + 1):
            x = [s[i, j] for j, y in enumerate(row) if y == k]
            if x:
                means.append(sum(x) / len(x))
        adjacent += max(0, len(means) - 1)
        wrong += sum(high < low for low, high in itertools.pairwise(means))
    out["wrong_order"] = wrong / adjacent
    out["level_rows"], out["level_loss"] = [], []
    for k in range(1, L + 1):
        weights = wide(torch.nn.functional.one_hot(torch.tensor(k - 1), L))
        losses = definition.losses(
            wide(SCALE) * wide(torch.from_numpy(s)),
            levels.tensors[0].numpy(),
            weights,
            positives,
            negatives,
        )
        has = [any(y == k if positives == "exact" else y >= k for y in row) for row in level]
        out["level_rows"].append(sum(has))
        out["level_loss"].append(float(losses[has].mean()) if any(has) else 0.0)
    return out


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("positives", ["exact", "at_least"])
@pytest.mark.parametrize("negatives", ["lower", "unrelated"])
def test_loss_statistics(negatives: Any, positives: Any, reduction: Any, backend: Any) -> None:
    inputs, levels = batch()
    q = inputs.queries.clone().requires_grad_()
    options = {"positives": positives, "negatives": negatives, "reduction": reduction}
    loss, stats = multi_level_ranking_loss(
        q,
        inputs.candidates,
        levels,
        logit_scale=SCALE,
        backend=backend,
        return_stats=True,
        **options,
    )
    assert isinstance(stats, LossStatistics)
    expected = slow(inputs, levels, positives, negatives)
    assert 0 < expected["wrong_order"] < 1
    for name, value in expected.items():
        got = getattr(stats, name)
        assert not got.requires_grad
        rel = 1e-7 if name == "wrong_order" else 1e-11  # a share of two counts, float32
        assert got.tolist() == pytest.approx(value, rel=rel), name
    # They are there beside the loss, which they do not change.
    plain = multi_level_ranking_loss(
        inputs.queries, inputs.candidates, levels, logit_scale=SCALE, backend=backend, **options
    )
    torch.testing.assert_close(loss.detach(), plain)
    loss.sum().backward()
    assert q.grad is not None


def test_similarity_and_not_the_logit(backend: Any) -> None:
    """`level_similarity` does not depend on the scale, and is a cosine for unit vectors."""
    inputs, levels = batch()
    values = [
        multi_level_ranking_loss(
            *inputs[:2], levels, logit_scale=scale, return_stats=True, backend=backend
        )[1].level_similarity
        for scale in (1.0, 50.0)
    ]
    torch.testing.assert_close(*values)
    assert (values[0].abs() <= 1).all()


def test_a_head_of_ones_own_is_the_loss(backend: Any) -> None:
    """The public head on the public tables gives what `reduction="none"` gives."""
    inputs, levels = batch()
    weights = torch.tensor([0.3, 0.1, 1.0, 2.0], dtype=torch.float64)
    grads = []
    for own in (True, False):
        q = inputs.queries.clone().requires_grad_()
        if own:
            stats = level_statistics(
                q, inputs.candidates, levels, logit_scale=SCALE, backend=backend
            )
            losses = multi_level_nce(stats.lse, stats.count, weights, "at_least", "unrelated")
        else:
            losses = multi_level_ranking_loss(
                q,
                inputs.candidates,
                levels,
                logit_scale=SCALE,
                level_weights=weights,
                positives="at_least",
                negatives="unrelated",
                reduction="none",
                backend=backend,
            )
        losses.square().sum().backward()
        grads.append((losses.detach(), q.grad))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def nce_in_python(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    losses, d_lse = multi_level_nce_gradient(*arguments)
    return losses.sum(dim=0), d_lse


def nce_on_the_cpu(lse: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    cpu = pytest.importorskip("grainrank.cpu")
    passes: Any = cpu.CpuPasses.__new__(cpu.CpuPasses)
    passes._suffix = "f64" if lse.dtype == torch.float64 else "f32"
    found: tuple[torch.Tensor, torch.Tensor] = passes.multi_level_nce(lse, *arguments)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("negatives", ["lower", "unrelated"])
@pytest.mark.parametrize("positives", ["exact", "at_least"])
@pytest.mark.parametrize("closed_form", [nce_in_python, nce_on_the_cpu])
def test_the_gradient_in_closed_form_is_that_of_the_head(
    closed_form: Any, positives: Any, negatives: Any, dtype: torch.dtype
) -> None:
    """Of levels that are empty, close together and thousands apart, and of a NaN."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 300, 4)
    count = torch.randint(0, 3, shape, generator=generator)
    count[0, 7, 2] = 1
    spread = 10.0 ** torch.randint(0, 5, (*shape[:2], 1), generator=generator)
    lse = (spread * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    lse = lse.masked_fill(count == 0, EMPTY)
    weights = torch.rand(2, 3, generator=generator, dtype=torch.float64).to(dtype)
    exact = lse.detach().clone().double().requires_grad_()
    losses = multi_level_nce(exact, count, weights.double()[:, None], positives, negatives)
    (expected,) = torch.autograd.grad(losses.sum(), exact)
    # Rows 20 .. of tables that go on in front of them and behind.
    here = slice(20, 280)
    found = closed_form(lse[:, here], count[:, here], weights, positives, negatives)
    tolerance = {"rtol": 1e-9, "atol": 1e-14} if dtype == torch.float64 else {}
    torch.testing.assert_close(found[0], losses.detach()[:, here].sum(dim=0).to(dtype), **tolerance)
    torch.testing.assert_close(found[1], expected[:, here].to(dtype), **tolerance)

    lse[0, 7, 2] = torch.nan
    losses, d_lse = closed_form(lse[:, :20], count[:, :20], weights, positives, negatives)
    assert losses.isnan().nonzero().tolist() == [[7]]
    assert bool(d_lse[0, 7].isnan().any())
    assert not bool(d_lse[:, [i for i in range(20) if i != 7]].isnan().any())


def test_dtypes_of_the_statistics(backend: Any) -> None:
    inputs = make_inputs(SHAPE, torch.bfloat16)
    _, stats = multi_level_ranking_loss(
        *inputs[:2], inputs.levels, temperature=0.5, return_stats=True, backend=backend
    )
    counts = ("rows_used", "level_rows", "level_pairs")
    for name, value in stats._asdict().items():
        assert (value.dtype == torch.int64) == (name in counts), name
