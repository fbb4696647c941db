"""The levels, tables, loss and gradients from their definitions (docs: design, section 2).

Written for being checked by eye: loops over rows and levels, sets of columns, no table shared
between the loss and its gradient, 80-bit floats. It is the truth that float64 results, the
reference among them, are judged by.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]
EMPTY = -1e30
NAMES = ("lse", "neg_lse", "total", "count", "highest", "lowest", "highest_at", "lowest_at")


def wide(x: Tensor | Array | float) -> Array:
    """80-bit floats of the same values."""
    if isinstance(x, Tensor):
        x = x.detach().double().numpy()
    return np.asarray(x, dtype=np.longdouble)


def narrow(x: Array) -> tuple[Tensor, Tensor]:
    """A float64 tensor and what it rounds away."""
    high = np.asarray(x, dtype=np.float64)
    low = np.asarray(x - high.astype(np.longdouble), dtype=np.float64)
    return torch.from_numpy(high.copy()), torch.from_numpy(low.copy())


def levels(query_keys: Tensor, candidate_keys: Tensor, match: str = "prefix") -> Array:
    """[N, M] by counting equal keys, one pair at a time."""
    rows = []
    for query in query_keys.tolist():
        row = []
        for candidate in candidate_keys.tolist():
            level = 0
            for a, b in zip(query, candidate, strict=True):
                equal = a == b and a >= 0
                if not equal and match == "prefix":
                    break
                level += equal
            row.append(level)
        rows.append(row)
    return np.array(rows, dtype=np.int8)


def logsumexp(x: Array) -> Array:
    highest = x.max()
    return highest + np.log(np.exp(x - highest).sum())


def unit(x: Array, normalize: bool) -> Array:
    if not normalize:
        return x
    return x / np.maximum(np.sqrt((x * x).sum(axis=1, keepdims=True)), np.longdouble(1e-12))


def tables(z: Array, level: Array, max_level: int) -> dict[str, Array]:
    n = len(z)
    empty = {"lse": EMPTY, "neg_lse": EMPTY, "total": 0, "count": 0, "highest": EMPTY}
    empty |= {"lowest": -EMPTY, "highest_at": -1, "lowest_at": -1}
    out = {}
    for name, value in empty.items():
        dtype = np.int64 if name in ("count", "highest_at", "lowest_at") else np.longdouble
        out[name] = np.full((n, max_level + 1), value, dtype=dtype)
    for i in range(n):
        for k in range(max_level + 1):
            columns = np.flatnonzero(level[i] == k)
            if len(columns) == 0:
                continue
            x = z[i, columns]
            out["lse"][i, k] = logsumexp(x)
            if k > 0:
                out["neg_lse"][i, k] = logsumexp(-x)
            out["total"][i, k] = x.sum()
            out["count"][i, k] = len(columns)
            out["highest"][i, k], out["lowest"][i, k] = x.max(), x.min()
            out["highest_at"][i, k] = columns[x == x.max()][0]
            out["lowest_at"][i, k] = columns[x == x.min()][0]
    return out


def sets(level: Array, k: int, positives: str, negatives: str) -> tuple[Array, Array]:
    """Columns of P_k and N_k in one row."""
    p = level == k if positives == "exact" else level >= k
    n = (level >= 0) & (level < k) if negatives == "lower" else level == 0
    return np.flatnonzero(p), np.flatnonzero(n)


def losses(z: Array, level: Array, weights: Array, positives: str, negatives: str) -> Array:
    """[N]: `sum_k w_k (LSE(P_k and N_k) - LSE(P_k))`."""
    out = np.zeros(len(z), dtype=np.longdouble)
    for i in range(len(z)):
        for k in range(1, len(weights) + 1):
            p, n = sets(level[i], k, positives, negatives)
            if len(p) and len(n):
                both = np.concatenate([p, n])
                high = z[i, both].max()
                e_p, e_n = np.exp(z[i, p] - high).sum(), np.exp(z[i, n] - high).sum()
                out[i] += weights[k - 1] * np.log1p(e_n / e_p)
    return out


def loss_gradient(
    z: Array, level: Array, weights: Array, positives: str, negatives: str, upstream: Array
) -> Array:
    """G [N, M] of `sum_i upstream_i loss_i`."""
    g = np.zeros_like(z)
    for i in range(len(z)):
        for k in range(1, len(weights) + 1):
            p, n = sets(level[i], k, positives, negatives)
            if len(p) and len(n):
                high = z[i, np.concatenate([p, n])].max()
                e_p, e_n = np.exp(z[i, p] - high), np.exp(z[i, n] - high)
                both = e_p.sum() + e_n.sum()
                factor = upstream[i] * weights[k - 1]
                g[i, n] += factor * e_n / both
                g[i, p] -= factor * e_p * e_n.sum() / (e_p.sum() * both)
    return g


def table_gradient(z: Array, level: Array, upstream: dict[str, Array]) -> Array:
    """G [N, M] of `sum (upstream * table)` over the five differentiable tables."""
    g = np.zeros_like(z)
    for i in range(len(z)):
        for k in range(upstream["lse"].shape[1]):
            columns = np.flatnonzero(level[i] == k)
            if len(columns) == 0:
                continue
            x = z[i, columns]
            g[i, columns] += upstream["lse"][i, k] * np.exp(x - logsumexp(x))
            if k > 0:
                g[i, columns] -= upstream["neg_lse"][i, k] * np.exp(-x - logsumexp(-x))
            g[i, columns] += upstream["total"][i, k]
            g[i, columns[np.argmax(x)]] += upstream["highest"][i, k]
            g[i, columns[np.argmin(x)]] += upstream["lowest"][i, k]
    return g


def input_gradients(
    g: Array, queries: Array, candidates: Array, scale: Array, normalize: bool
) -> dict[str, Array]:
    """From G to the gradients of the inputs, through the normalisation."""
    q, c = unit(queries, normalize), unit(candidates, normalize)
    d_q, d_c = scale * (g @ c), scale * (g.T @ q)
    if normalize:
        for d, x, u in ((d_q, queries, q), (d_c, candidates, c)):
            norm = np.sqrt((x * x).sum(axis=1, keepdims=True))
            d -= u * (u * d).sum(axis=1, keepdims=True)
            d /= norm
    return {"d_queries": d_q, "d_candidates": d_c, "d_scale": (g * (q @ c.T)).sum()}
