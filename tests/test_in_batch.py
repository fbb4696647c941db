"""Metrics of a batch from what its loss has computed, against those from exact ranks."""

from __future__ import annotations

import pytest
import torch

from grainrank import DenseLevels, level_statistics, metrics
from grainrank.ranks import positive_ranks

N, M, L = 12, 9, 3


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings whose similarities are exact and often equal; rows without some of the levels."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(-2, 3, (N, 3), generator=generator).double()
    c = torch.randint(-2, 3, (M, 3), generator=generator).double()
    levels = torch.randint(-1, L + 1, (N, M), generator=generator)
    levels[0], levels[1], levels[2] = 0, -1, levels[2].clamp(min=1)
    levels[3] = torch.where(levels[3] == L, 0, levels[3])
    return q, c, levels


@pytest.mark.parametrize("seed", range(5))
def test_top_hits_equal_those_of_exact_ranks(seed: int) -> None:
    q, c, levels = batch(seed)
    source = DenseLevels(levels, L)
    found = metrics.in_batch(level_statistics(q, c, source, logit_scale=2.0, normalize=False))
    ranks = positive_ranks(q, c, source, ties="first", normalize=False)
    for level in range(1, L + 1):
        mean = metrics.mean_over_queries(metrics.success_at(ranks, 1, level), ranks, level)
        assert found.success[level - 1] == pytest.approx(float(mean), abs=1e-15)
        assert found.rows[level - 1] == int((ranks.count[:, level:].sum(dim=1) > 0).sum())


@pytest.mark.parametrize("seed", range(5))
def test_gaps_equal_a_slow_loop(seed: int) -> None:
    q, c, levels = batch(seed)
    source = DenseLevels(levels, L)
    found = metrics.in_batch(level_statistics(q, c, source, logit_scale=2.0, normalize=False))
    for level in range(1, L + 1):
        gaps = []
        for z, y in zip(2 * q @ c.T, levels, strict=True):
            own, lower = z[y == level], z[(y >= 0) & (y < level)]
            if len(own) > 0 and len(lower) > 0:
                gaps.append(float(own.min() - lower.max()))
        assert found.gap_rows[level - 1] == len(gaps) > 0
        assert found.gap[level - 1] == pytest.approx(sum(gaps) / len(gaps), abs=1e-12)
        share = sum(gap > 0 for gap in gaps) / len(gaps)
        assert found.separated[level - 1] == pytest.approx(share, abs=1e-15)


def test_a_level_that_no_row_has_is_zero() -> None:
    x = torch.eye(4)
    found = metrics.in_batch(
        level_statistics(x, x, DenseLevels(torch.eye(4).long(), 2), temperature=1.0)
    )
    assert found.rows.tolist() == [4, 0]
    assert found.success.tolist() == found.separated.tolist() == [1.0, 0.0]
    assert found.gap.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("surrogate", ["sigmoid", "upper_bound"])
def test_smooth_ranks_hold_exact_ones(backend: str, surrogate: str) -> None:
    q, c, levels = batch()
    source = DenseLevels(levels, L)
    options = {"normalize": False, "backend": backend}
    smooth = positive_ranks(
        q.requires_grad_(), c, source, temperature=0.1, surrogate=surrogate, **options
    )
    exact = positive_ranks(q, c, source, ties="pessimistic", **options)
    for a, b in zip(smooth.exact(), exact, strict=True):
        assert (a is b is None) or torch.equal(a, b)
    assert exact.exact() is exact


def test_light_tables_are_refused() -> None:
    x = torch.eye(2)
    light = level_statistics(x, x, temperature=1.0)._replace(highest=None)
    for wrong in (light, x):
        with pytest.raises(TypeError, match="statistics must be the LevelStatistics"):
            metrics.in_batch(wrong)
