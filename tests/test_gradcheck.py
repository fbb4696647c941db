"""Analytic against numerical gradients in float64, through every public way in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from grainrank import DenseLevels, LevelSource, level_statistics, multi_level_ranking_loss
from grainrank.testing import Shape, make_dense_levels, make_inputs

SHAPE = Shape(5, 8, 3, 2)


def leaves(normalize: bool, scale: float) -> tuple[Tensor, ...]:
    q, c, *_ = make_inputs(SHAPE, torch.float64, seed=1)
    # Far from the zero vector, where normalisation bends.
    q, c = (x if normalize else x / 3 for x in (q, c))
    values = q, c, torch.tensor(scale, dtype=torch.float64)
    return tuple(x.clone().requires_grad_() for x in values)


def levels() -> list[LevelSource]:
    keys = make_inputs(SHAPE, seed=1).levels
    return [keys, DenseLevels(make_dense_levels(SHAPE, 4, seed=2), 4)]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "dot"])
@pytest.mark.parametrize("form", ["temperature", "logit_scale"])
def test_loss(form: str, normalize: bool, reduction: str, backend: str) -> None:
    for source in levels():

        def loss(q: Tensor, c: Tensor, scale: Tensor, source: LevelSource = source) -> Any:
            options: dict[str, Any] = {form: scale, "reduction": reduction, "backend": backend}
            return multi_level_ranking_loss(q, c, source, normalize=normalize, **options)

        assert gradcheck(loss, leaves(normalize, 0.4 if form == "temperature" else 3.0))


@pytest.mark.parametrize("positives", ["exact", "at_least"])
@pytest.mark.parametrize("negatives", ["lower", "unrelated"])
def test_rules_and_weights(positives: Any, negatives: Any, backend: str) -> None:
    source = levels()[1]

    def loss(q: Tensor, c: Tensor, scale: Tensor) -> Any:
        return multi_level_ranking_loss(
            q,
            c,
            source,
            logit_scale=scale,
            positives=positives,
            negatives=negatives,
            level_weights=[0.3, 0.0, 1.0, 2.0],
            backend=backend,  # type: ignore[arg-type]
        )

    assert gradcheck(loss, leaves(True, 3.0))


@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "dot"])
@pytest.mark.parametrize("table", ["lse", "neg_lse", "total", "highest", "lowest", "all"])
def test_level_statistics(table: str, normalize: bool, backend: str) -> None:
    for source in levels():

        def tables(q: Tensor, c: Tensor, scale: Tensor, source: LevelSource = source) -> Any:
            stats = level_statistics(
                q,
                c,
                source,
                logit_scale=scale,
                normalize=normalize,
                backend=backend,  # type: ignore[arg-type]
            )
            names = ("lse", "neg_lse", "total", "highest", "lowest") if table == "all" else [table]
            # The value of an empty level, 1e30, would swallow the others in a sum.
            kept = [torch.where(stats.count > 0, getattr(stats, name), 0.0) for name in names]
            return tuple(kept) if table != "all" else torch.stack(kept).sin()

        assert gradcheck(tables, leaves(normalize, 2.0))
