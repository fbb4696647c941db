"""One loss step, and one call of the tables, three ways: backend, reference, truth.

The truth is the reference in float64, and for float64 inputs the definition in 80-bit floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import definition
import numpy as np
import torch
from definition import wide
from torch import Tensor

from grainrank import LevelSource, level_statistics, multi_level_ranking_loss
from grainrank.testing import Draw, Inputs, assert_accurate

DIFFERENTIABLE = ("lse", "neg_lse", "total", "highest", "lowest")
Results = dict[str, Tensor]


@dataclass(frozen=True)
class LossOptions:
    positives: str = "exact"
    negatives: str = "lower"
    normalize: bool = True
    reduction: str = "mean"
    scale: float = 4.0

    def id(self) -> str:
        kind = "unit" if self.normalize else "dot"
        return f"{self.positives}-{self.negatives}-{kind}-{self.reduction}"


def accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def upstream(seed: int, *shape: int) -> Tensor:
    """A gradient that is not uniform, the same numbers in every dtype; 1.5 for a scalar."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(shape, generator=generator) if shape else torch.tensor(1.5)


def leaves(inputs: Inputs, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, candidates and scale that collect gradients."""
    dtype = accumulation(inputs.queries.dtype)
    return (
        inputs.queries.clone().requires_grad_(),
        inputs.candidates.clone().requires_grad_(),
        torch.tensor(scale, dtype=dtype, requires_grad=True),
    )


def gradients(q: Tensor, c: Tensor, scale: Tensor) -> Results:
    assert q.grad is not None
    assert c.grad is not None
    assert scale.grad is not None
    return {"d_queries": q.grad, "d_candidates": c.grad, "d_scale": scale.grad}


def loss_step(
    inputs: Inputs, levels: LevelSource, options: LossOptions, backend: str, seed: int
) -> Results:
    q, c, scale = leaves(inputs, options.scale)
    loss = multi_level_ranking_loss(
        q,
        c,
        levels,
        logit_scale=scale,
        positives=options.positives,  # type: ignore[arg-type]
        negatives=options.negatives,  # type: ignore[arg-type]
        normalize=options.normalize,
        reduction=options.reduction,  # type: ignore[arg-type]
        backend=backend,  # type: ignore[arg-type]
    )
    loss.backward(upstream(seed, *loss.shape).to(loss.dtype))
    return {"loss": loss.detach(), **gradients(q, c, scale)}


def wide_problem(inputs: Inputs, levels: LevelSource, options: LossOptions) -> tuple[Any, ...]:
    """Levels, queries, candidates, scale and logits, in 80-bit floats."""
    level = levels.block(0, len(inputs.queries), len(inputs.candidates)).numpy()
    q, c, scale = wide(inputs.queries), wide(inputs.candidates), wide(options.scale)
    z = scale * (definition.unit(q, options.normalize) @ definition.unit(c, options.normalize).T)
    return level, q, c, scale, z


def true_loss_step(
    inputs: Inputs, levels: LevelSource, options: LossOptions, seed: int
) -> dict[str, tuple[Tensor, Tensor | None]]:
    if inputs.queries.dtype != torch.float64:
        exact = Inputs(*(x.double() for x in inputs[:2]), *inputs[2:])
        step = loss_step(exact, levels, options, "reference", seed)
        return {name: (value, None) for name, value in step.items()}
    level, q, c, scale, z = wide_problem(inputs, levels, options)
    weights = wide(0.1) + np.zeros(levels.max_level, dtype=np.longdouble)
    weights[-1] = 1
    rules = options.positives, options.negatives
    losses = definition.losses(z, level, weights, *rules)
    ones = np.ones(len(q), dtype=np.longdouble)
    used = max(1, int((level > 0).any(axis=1).sum())) if options.reduction == "mean" else 1
    if options.reduction == "none":
        loss, d_losses = losses, wide(upstream(seed, len(q)))
    else:
        loss, d_losses = losses.sum() / used, ones * wide(upstream(seed)) / used
    g = definition.loss_gradient(z, level, weights, *rules, d_losses)
    step = definition.input_gradients(g, q, c, scale, options.normalize)
    return {name: definition.narrow(x) for name, x in {"loss": loss, **step}.items()}


def table_upstream(count: Tensor, seed: int) -> Results:
    """Gradients of the differentiable tables, 0 at empty levels."""
    shape = tuple(count.shape)
    values = {name: upstream(seed + 7 * i, *shape) for i, name in enumerate(DIFFERENTIABLE)}
    return {name: value * (count > 0) for name, value in values.items()}


def table_step(
    inputs: Inputs, levels: LevelSource, options: LossOptions, backend: str, d_tables: Results
) -> Results:
    """The tables of `level_statistics` and the gradients for `d_tables`."""
    q, c, scale = leaves(inputs, options.scale)
    stats = level_statistics(
        q,
        c,
        levels,
        logit_scale=scale,
        normalize=options.normalize,
        backend=backend,  # type: ignore[arg-type]
    )._asdict()
    tables = [stats[name] for name in DIFFERENTIABLE]
    torch.autograd.backward(
        tables, [d_tables[name].to(stats["lse"].dtype) for name in DIFFERENTIABLE]
    )
    detached = {name: t.detach() for name, t in stats.items() if t is not None}
    return {**detached, **gradients(q, c, scale)}


def true_table_step(
    inputs: Inputs, levels: LevelSource, options: LossOptions, d_tables: Results
) -> dict[str, tuple[Tensor, Tensor | None]]:
    if inputs.queries.dtype != torch.float64:
        exact = Inputs(*(x.double() for x in inputs[:2]), *inputs[2:])
        step = table_step(exact, levels, options, "reference", d_tables)
        return {name: (value, None) for name, value in step.items()}
    level, q, c, scale, z = wide_problem(inputs, levels, options)
    tables = definition.tables(z, level, levels.max_level)
    g = definition.table_gradient(z, level, {name: wide(d) for name, d in d_tables.items()})
    step = definition.input_gradients(g, q, c, scale, options.normalize)
    return {name: definition.narrow(x) for name, x in {**tables, **step}.items()}


def judge(
    name: str,
    actual: list[Results],
    reference: list[Results],
    truth: list[dict[str, tuple[Tensor, Tensor | None]]],
    where: list[Tensor] | None = None,
) -> None:
    """The rule of accuracy for one result over all draws, at the elements `where` says."""
    draws = []
    for i, (a, r, t) in enumerate(zip(actual, reference, truth, strict=True)):
        high, low = t[name]
        here = torch.ones_like(high, dtype=torch.bool) if where is None else where[i]
        kept = None if low is None else low[here]
        draws.append(Draw(a[name][here], r[name][here], high[here], kept))
    assert_accurate(name, *draws)
