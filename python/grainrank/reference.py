r"""The plain PyTorch reference: it defines what is correct, on any device, in any floating dtype.

It builds the whole similarity matrix and is meant for tests, small batches and machines without a
kernel.

Derivation
----------
Let `s_ij = <q_i, c_j>`, `z_ij = scale * s_ij`, and `y_ij` in `{-1, 0, .., L}` the level of the
pair; pairs with `y = -1` take no part. A loss that depends on the logits only through the row
tables

    lse[i, l]     = log sum_{j: y_ij = l} exp(z_ij)
    neg_lse[i, l] = log sum_{j: y_ij = l} exp(-z_ij)        levels >= 1
    total[i, l]   = sum_{j: y_ij = l} z_ij
    highest[i, l], lowest[i, l] = max, min over the level, taken at the first such column

has, by the chain rule and `d lse[i, l] / d z_ij = exp(z_ij - lse[i, l])` where `y_ij = l`, else 0,

    G_ij = dL / dz_ij = d_lse[i, y] exp(z_ij - lse[i, y]) - d_neg_lse[i, y] exp(-z_ij - neg_lse[i,
    y])
                        + d_total[i, y] + [j = highest_at[i, y]] d_highest[i, y] + [j = lowest_at[i,
                        y]] d_lowest[i, y]

and, since `z = scale * Q C^T`,

    dQ = scale * G C        dC = scale * G^T Q        dscale = sum_ij G_ij s_ij = <Q, G C>.

Multi-level NCE. With `A = LSE(P_k)` and `B = LSE(N_k)` (disjoint sets of levels),

    L_k = LSE(P_k and N_k) - LSE(P_k) = log(1 + exp(B - A)) = softplus(B - A)
    dL_k / dB = sigmoid(B - A) = -dL_k / dA,   dA / dlse[l] = exp(lse[l] - A) for l in P_k, the same
    for B and N_k.

The sigmoid is what `1 - p` would be for the probability p of the positives; as a difference it
loses all digits when p is close to 1.

Normalisation. `x^ = x / max(|x|, eps)` gives `dx = (dx^ - x^ <x^, dx^>) / |x|`, and `dx = dx^ /
eps` where the norm is below eps.

An empty level holds the finite sentinel `EMPTY` (lse, neg_lse, highest) or `-EMPTY` (lowest), so
that differences of empty levels are 0 and never NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EMPTY = -1e30
NORM_EPS = 1e-12


class Tables(NamedTuple):
    """Row tables `[N, L + 1]`.

    Counts and columns are int64, the rest has the dtype of the logits.
    """

    lse: Tensor
    neg_lse: Tensor
    total: Tensor
    count: Tensor  # type: ignore[assignment]
    highest: Tensor
    lowest: Tensor
    highest_at: Tensor
    lowest_at: Tensor


class TableGradients(NamedTuple):
    """Gradients of the differentiable tables `[N, L + 1]`; None is zero."""

    lse: Tensor | None = None
    neg_lse: Tensor | None = None
    total: Tensor | None = None
    highest: Tensor | None = None
    lowest: Tensor | None = None


def normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length 1 and their former norms, `[N, 1]`; `torch.nn.functional.normalize`."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / norm.clamp_min(NORM_EPS), norm


def normalize_backward(d_unit: Tensor, unit: Tensor, norm: Tensor) -> Tensor:
    """The gradient before normalisation, from the one after it."""
    along = (unit * d_unit).sum(dim=1, keepdim=True)
    along = torch.where(norm >= NORM_EPS, along, 0.0)
    return (d_unit - unit * along) / norm.clamp_min(NORM_EPS)


def level_tables(z: Tensor, level: Tensor, max_level: int) -> Tables:
    """The tables of logits `z` `[N, M]` with levels `[N, M]`."""
    columns: list[tuple[Tensor, ...]] = []
    for k in range(max_level + 1):
        here = level == k
        empty = ~here.any(dim=1)
        lse = torch.where(here, z, -torch.inf).logsumexp(dim=1)
        neg_lse = torch.where(here, -z, -torch.inf).logsumexp(dim=1)
        above = torch.where(here, z, -torch.inf)
        below = torch.where(here, z, torch.inf)
        columns.append(
            (
                torch.where(empty, EMPTY, lse),
                torch.where(empty, EMPTY, neg_lse) if k else torch.full_like(lse, EMPTY),
                torch.where(here, z, 0.0).sum(dim=1),
                here.sum(dim=1),
                torch.where(empty, EMPTY, above.amax(dim=1)),
                torch.where(empty, -EMPTY, below.amin(dim=1)),
                torch.where(empty, -1, above.argmax(dim=1)),
                torch.where(empty, -1, below.argmin(dim=1)),
            )
        )
    return Tables(*(torch.stack(table, dim=1) for table in zip(*columns, strict=True)))


def pair_gradient(z: Tensor, level: Tensor, tables: Tables, d_tables: TableGradients) -> Tensor:
    """G `[N, M]`: the gradient of the logits."""
    g = torch.zeros_like(z)
    columns = torch.arange(z.shape[1], device=z.device)
    for k in range(tables.lse.shape[1]):
        at_level = torch.zeros_like(z)
        if d_tables.lse is not None:
            at_level = at_level + d_tables.lse[:, k, None] * torch.exp(z - tables.lse[:, k, None])
        if d_tables.neg_lse is not None and k > 0:
            p = torch.exp(-z - tables.neg_lse[:, k, None])
            at_level = at_level - d_tables.neg_lse[:, k, None] * p
        if d_tables.total is not None:
            at_level = at_level + d_tables.total[:, k, None]
        if d_tables.highest is not None:
            at = columns == tables.highest_at[:, k, None]
            at_level = at_level + d_tables.highest[:, k, None] * at
        if d_tables.lowest is not None:
            at = columns == tables.lowest_at[:, k, None]
            at_level = at_level + d_tables.lowest[:, k, None] * at
        g = torch.where(level == k, at_level, g)
    return g


def multi_level_nce(
    tables: Tables, level_weights: Tensor, positives: str, negatives: str
) -> tuple[Tensor, Tensor]:
    """The loss of each row `[N]` and its gradient in lse `[N, L + 1]`."""
    lse, count = tables.lse, tables.count
    levels = torch.arange(lse.shape[1], device=lse.device)
    loss = torch.zeros_like(lse[:, 0])
    d_lse = torch.zeros_like(lse)
    for k in range(1, lse.shape[1]):
        in_p = levels == k if positives == "exact" else levels >= k
        in_n = levels < k if negatives == "lower" else levels == 0
        has_positive = (count * in_p).sum(dim=1) > 0
        a = torch.where(in_p, lse, EMPTY).logsumexp(dim=1)
        b = torch.where(in_n, lse, EMPTY).logsumexp(dim=1)
        softplus = -torch.nn.functional.logsigmoid(a - b)
        loss = loss + level_weights[k - 1] * torch.where(has_positive, softplus, 0.0)
        slope = level_weights[k - 1] * torch.where(has_positive, torch.sigmoid(b - a), 0.0)
        share_b = torch.where(in_n, torch.exp(lse - b[:, None]), 0.0)
        share_a = torch.where(in_p, torch.exp(lse - a[:, None]), 0.0)
        d_lse = d_lse + slope[:, None] * (share_b - share_a)
    return loss, d_lse


def logits(
    queries: Tensor, candidates: Tensor, scale: Tensor, normalized: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`z` `[N, M]`, and the (normalised) operands with their former norms; dtype of `scale`."""
    q, c = queries.to(scale.dtype), candidates.to(scale.dtype)
    q_norm, c_norm = q.new_ones(q.shape[0], 1), c.new_ones(c.shape[0], 1)
    if normalized:
        (q, q_norm), (c, c_norm) = normalize(q), normalize(c)
    return scale * (q @ c.T), q, c, q_norm, c_norm


def gradients(
    queries: Tensor,
    candidates: Tensor,
    scale: Tensor,
    level: Tensor,
    tables: Tables,
    d_tables: TableGradients,
    normalized: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ `[N, D]`, dC `[M, D]` and dscale from the gradients of the tables; dtype of `scale`."""
    z, q, c, q_norm, c_norm = logits(queries, candidates, scale, normalized)
    g = pair_gradient(z, level, tables, d_tables)  # [N, M]
    unscaled = g @ c  # [N, D]
    d_scale = (q * unscaled).sum()
    d_q, d_c = scale * unscaled, scale * (g.T @ q)
    if normalized:
        d_q = normalize_backward(d_q, q, q_norm)
        d_c = normalize_backward(d_c, c, c_norm)
    return d_q, d_c, d_scale
