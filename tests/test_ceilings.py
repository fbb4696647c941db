"""False-negative margins: which pairs they take out, in every direction and backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from grainrank import (
    DenseLevels,
    LevelSource,
    SimilarityBands,
    level_statistics,
    multi_level_ranking_loss,
    rince_loss,
    siglip_loss,
)

N, M, D, L = 11, 70, 6, 2
MARGINS = [(0.0, False), (0.2, False), (-0.1, False), (0.3, True)]
OWN = [False, True]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def base() -> Tensor:
    """Row 2 and column 5 have no positive."""
    generator = torch.Generator().manual_seed(1)
    draw = torch.rand(N, M, generator=generator)
    level = (draw > 0.9).long() + (draw > 0.95) - (draw < 0.1).long()
    level[2] = level[2].clamp_max(0)
    level[:, 5] = level[:, 5].clamp_max(0)
    return level


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return normalize(a.double()) @ normalize(b.double()).T


def by_hand(
    level: Tensor, similarity: Tensor, margin: float, relative: bool, curated: Tensor
) -> Tensor:
    """The levels as the rows see them."""
    out = level.clone()
    for i in range(len(level)):
        positives = [float(similarity[i, j]) for j in range(len(level[i])) if level[i, j] > 0]
        if not positives:
            continue
        best = max(positives)
        ceiling = best - (abs(best) * margin if relative else margin)
        for j in range(len(level[i])):
            if level[i, j] == 0 and similarity[i, j] > ceiling and not curated[i, j]:
                out[i, j] = -1
    return out


def setting(own: bool, keep: bool) -> tuple[dict[str, Any], Tensor, Tensor, Tensor]:
    """Options of the margin, the similarity that it is about, the curated pairs, and q and c."""
    q, c = random(N, D), random(M, D, seed=3)
    reference = None if own else (random(N, 4, seed=4).float(), random(M, 4, seed=5).float())
    ids = torch.arange(N) % 5, torch.arange(M) % 7
    options = {"reference": reference, "curated": ids if keep else None}
    similarity = cosine(q, c) if own else cosine(*reference)  # type: ignore[misc]
    kept = (ids[0][:, None] == ids[1]) & keep
    return options, similarity, kept, torch.cat([q, c])


@pytest.mark.parametrize("keep", [False, True], ids=["all", "curated"])
@pytest.mark.parametrize("own", OWN, ids=["reference", "own"])
@pytest.mark.parametrize(("margin", "relative"), MARGINS)
def test_the_tables_of_both_sides(
    margin: float, relative: bool, own: bool, keep: bool, backend: str
) -> None:
    """As if the pairs had been ignored in a matrix: for the rows by theirs, and so the columns."""
    options, similarity, kept, both = setting(own, keep)
    q, c = (x.requires_grad_() for x in both.split([N, M]))
    source = DenseLevels(base(), L).false_negative_margin(margin, relative=relative, **options)
    seen_by_rows = by_hand(base(), similarity, margin, relative, kept)
    seen_by_columns = by_hand(base().T, similarity.T, margin, relative, kept.T).T
    assert (seen_by_rows != base()).any()
    assert (seen_by_rows != seen_by_columns).any()

    def tables(levels: LevelSource, direction: Any, backend: Any) -> Any:
        return level_statistics(
            q, c, levels, temperature=0.2, direction=direction, backend=backend, workspace_mb=0.004
        )

    got = tables(source, "symmetric", backend)
    expected = (
        tables(DenseLevels(seen_by_rows, L), "query_to_candidate", "reference"),
        tables(DenseLevels(seen_by_columns, L), "candidate_to_query", "reference"),
    )
    for side, truth in zip(got, expected, strict=True):
        for a, b in zip(side[:8], truth[:8], strict=True):
            torch.testing.assert_close(a, b)
    sums = []
    for rows, columns in (got, expected):
        values = [getattr(t, name) for t in (rows, columns) for name in ("lse", "total", "highest")]
        weights = [random(*v.shape, seed=i) * (v.abs() < 1e29) for i, v in enumerate(values)]
        total = torch.stack([(v * w).sum() for v, w in zip(values, weights, strict=True)]).sum()
        sums.append(torch.autograd.grad(total, [q, c], retain_graph=True))
    for a, b in zip(*sums, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("own", OWN, ids=["reference", "own"])
def test_losses_and_prefixes(own: bool, backend: str) -> None:
    """The own similarity is the prefix's own; the fused loss, the positives' sums, the sigmoid."""
    options, _, _, both = setting(own, False)
    q, c = both.split([N, M])
    dims = (3, 6)
    source = DenseLevels(base(), L).false_negative_margin(0.1, **options)
    nothing = torch.zeros(N, M, dtype=torch.bool)
    for loss in (multi_level_ranking_loss, siglip_loss, rince_loss):
        form: dict[str, Any] = {"form": "out"} if loss is rince_loss else {}
        expected = torch.zeros((), dtype=torch.float64)
        for width in dims:
            a, b = q[:, :width], c[:, :width]
            similarity = cosine(*options["reference"]) if options["reference"] else cosine(a, b)
            level = by_hand(base(), similarity, 0.1, False, nothing)
            expected = expected + loss(
                a, b, DenseLevels(level, L), temperature=0.3, backend="reference", **form
            )
        got = loss(q, c, source, temperature=0.3, matryoshka_dims=dims, backend=backend, **form)  # type: ignore[operator]
        torch.testing.assert_close(got, expected)


def test_a_negative_at_the_ceiling_counts(backend: str) -> None:
    """As similar as the best positive, bit by bit."""
    source = DenseLevels(torch.tensor([[1, 0, 0]]), 1).false_negative_margin(0.0)
    q, c = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    stats = level_statistics(q, c, source, temperature=1.0, backend=backend)  # type: ignore[arg-type]
    assert stats.count.tolist() == [[2, 1]]


def test_memory_has_no_ceiling_of_its_own(backend: str) -> None:
    """Its columns are filtered by the rows; the symmetric side has the candidates alone."""
    options, similarity, kept, both = setting(True, False)
    q, c = both.split([N, M])
    source = DenseLevels(base(), L).false_negative_margin(0.1, **options)
    split = 60
    rows = by_hand(base(), similarity, 0.1, False, kept)
    columns = by_hand(base()[:, :split].T, similarity[:, :split].T, 0.1, False, kept.T[:split])
    got = multi_level_ranking_loss(
        q, c[:split], source, memory=c[split:], temperature=0.2, direction="symmetric",
        backend=backend,
    )  # fmt: skip
    sides = [
        multi_level_ranking_loss(q, c, DenseLevels(rows, L), temperature=0.2, backend="reference"),
        multi_level_ranking_loss(
            c[:split], q, DenseLevels(columns, L), temperature=0.2, backend="reference"
        ),
    ]
    torch.testing.assert_close(got, torch.stack(sides).mean())


def test_bands_under_a_margin(backend: str) -> None:
    """Two products of references in one source."""
    q, c = random(N, D), random(M, D, seed=3)
    reference = random(N, 4, seed=4).float(), random(M, 4, seed=5).float()
    bands = SimilarityBands(random(N, 5, seed=6), random(M, 5, seed=7), [0.4, 0.7])
    level = bands.block(0, N, M).long()
    nothing = torch.zeros(N, M, dtype=torch.bool)
    seen = by_hand(level, cosine(*reference), 0.1, False, nothing)
    assert (seen < 0).any()
    got = multi_level_ranking_loss(
        q, c, bands.false_negative_margin(0.1, reference=reference), temperature=0.2,
        backend=backend, workspace_mb=0.01,
    )  # fmt: skip
    expected = multi_level_ranking_loss(
        q, c, DenseLevels(seen, 2), temperature=0.2, backend="reference"
    )
    torch.testing.assert_close(got, expected)
