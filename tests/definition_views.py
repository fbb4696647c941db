"""Tables and gradients of a whole batch in all its views, from their definitions, in 80 bits.

The loops are those of definition.py; here stand prefixes, factors, the circle's curve, columns, and
the softplus sums.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import definition
import numpy as np
import torch
from definition import Array, wide

from grainrank.batch import Batch

EXTREMES = ("highest", "lowest")
DIFFERENTIABLE = ("lse", "neg_lse", "total", *EXTREMES)


class View(NamedTuple):
    width: int  # of the prefix
    channel: int
    s: Array  # [N, M + Q]
    z: Array
    slope: Array  # dz / d(scale * s)
    row_level: Array  # [N, M + Q]
    column_level: Array  # [N, M]


def views(batch: Batch) -> list[View]:
    out = []
    q, c, scale = wide(batch.queries), wide(batch.candidates), wide(batch.scale)
    if batch.memory is not None:
        c = np.concatenate([c, wide(batch.memory)])
    m = len(batch.candidates)
    level = batch.levels.block(0, len(q), len(c))
    for p, width in enumerate(batch.prefixes):
        s = definition.unit(q[:, :width], batch.normalize)
        s = s @ definition.unit(c[:, :width], batch.normalize).T
        rows, columns = batch.levels.under_ceilings(level, definition.narrow(s)[0], p)
        y = rows.numpy()
        for f in range(batch.channels):
            slope = np.ones_like(s)
            center = np.zeros_like(s)
            if batch.factors is not None:
                slope = wide(batch.factors[f])[np.maximum(y, 0)]
            if batch.circle is not None:
                one, margin = np.longdouble(1), wide(batch.circle)
                slope = np.maximum(np.where(y > 0, one + margin - s, s + margin), 0)
                center = np.where(y > 0, one - margin, margin)
            z = scale * slope * (s - center)
            out.append(View(width, f, s, z, slope, y, columns.numpy()[:, :m]))
    return out


def thresholds(lse: Array, negatives: str) -> Array:
    """[N, L + 1]: log-sum-exp of the negatives of each level; -1e30 where there are none."""
    out = np.full_like(lse, definition.EMPTY)
    for i in range(lse.shape[0]):
        for k in range(1, lse.shape[1]):
            values = lse[i, :k] if negatives == "lower" else lse[i, :1]
            values = values[values > -1e29]
            if len(values):
                out[i, k] = definition.logsumexp(values)
    return out


def softplus(z: Array, level: Array, against: Array) -> Array:
    out = np.zeros_like(against)
    for i in range(len(z)):
        for k in range(1, against.shape[1]):
            x = against[i, k] - z[i, level[i] == k]
            out[i, k] = (np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))).sum()
    return out


def softplus_gradient(z: Array, level: Array, d: Array, negatives: str) -> Array:
    """G of `sum (d * softplus)`, through the thresholds too."""
    max_level = d.shape[1] - 1
    lse = definition.tables(z, level, max_level)["lse"]
    against = thresholds(lse, negatives)
    g = np.zeros_like(z)
    for i in range(len(z)):
        for k in range(1, max_level + 1):
            p, n = definition.sets(level[i], k, "exact", negatives)
            if len(p) == 0 or len(n) == 0:
                continue
            slope = d[i, k] / (1 + np.exp(z[i, p] - against[i, k]))
            g[i, p] -= slope
            g[i, n] += slope.sum() * np.exp(z[i, n] - against[i, k])
    return g


def tables(batch: Batch, negatives: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """Rows `[V, N, L + 1]` and columns `[V, M, L + 1]`."""
    rows, columns, max_level = [], [], batch.levels.max_level
    for v in views(batch):
        of_rows = definition.tables(v.z, v.row_level, max_level)
        if negatives:
            against = thresholds(of_rows["lse"], negatives)
            of_rows["softplus"] = softplus(v.z, v.row_level, against)
        rows.append(of_rows)
        m = v.column_level.shape[1]
        columns.append(definition.tables(v.z[:, :m].T, v.column_level.T, max_level))
    return _stacked(rows), _stacked(columns)


def _stacked(views: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.stack([view[name] for view in views]) for name in views[0]}


def gradients(
    batch: Batch, d_rows: dict[str, Array], d_columns: dict[str, Array], negatives: str
) -> dict[str, Array]:
    """For the gradients of the tables, those of the inputs."""
    q, c, scale = wide(batch.queries), wide(batch.candidates), wide(batch.scale)
    memory = c[:0] if batch.memory is None else wide(batch.memory)
    m = len(c)
    out: dict[str, Any] = {
        "d_queries": np.zeros_like(q),
        "d_candidates": np.zeros_like(c),
        "d_scale": np.longdouble(0),
    }
    if batch.factors is not None:
        out["d_factors"] = np.zeros_like(wide(batch.factors))
    for i, v in enumerate(views(batch)):
        d = {name: d_rows[name][i] for name in DIFFERENTIABLE}
        g = definition.table_gradient(v.z, v.row_level, d)
        if negatives:
            g += softplus_gradient(v.z, v.row_level, d_rows["softplus"][i], negatives)
        d = {name: d_columns[name][i] for name in DIFFERENTIABLE}
        g[:, :m] += definition.table_gradient(v.z[:, :m].T, v.column_level.T, d).T
        if batch.factors is not None:
            for k in range(batch.levels.max_level + 1):
                here = np.maximum(v.row_level, 0) == k
                out["d_factors"][v.channel, k] += (scale * g * v.s)[here].sum()
        every = np.concatenate([c, memory])[:, : v.width]
        step = definition.input_gradients(
            g * v.slope, q[:, : v.width], every, scale, batch.normalize
        )
        out["d_queries"][:, : v.width] += step["d_queries"]
        out["d_candidates"][:, : v.width] += step["d_candidates"][:m]
        out["d_scale"] += step["d_scale"]
    return out


def sigmoid(batch: Batch, bias: Array, weights: Array) -> dict[str, Array]:
    """The sigmoid losses [N], and the gradients of their sum."""
    (v,) = views(batch)
    sign = np.where(v.row_level > 0, -1, 1)
    weight = np.where(v.row_level >= 0, weights[np.maximum(v.row_level, 0)], 0)
    x = sign * (v.z + bias)
    losses = weight * (np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))
    g = weight * sign / (1 + np.exp(-x))
    c, m = wide(batch.candidates), len(batch.candidates)
    if batch.memory is not None:
        c = np.concatenate([c, wide(batch.memory)])
    step = definition.input_gradients(g, wide(batch.queries), c, wide(batch.scale), batch.normalize)
    step["d_candidates"] = step["d_candidates"][:m]
    return {"losses": losses.sum(axis=1), **step, "d_bias": g.sum()}


def as_tensors(values: dict[str, Array]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {name: definition.narrow(value) for name, value in values.items()}
