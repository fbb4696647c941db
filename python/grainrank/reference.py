"""What is correct: the loss and its gradients in plain PyTorch, dense N x M, on any device.

Every other backend is judged by this file (`grainrank.testing`); no kernel imports it. The
derivations that the kernels use stand here.

Notation. `s_ij = <q_i, c_j>`, `z_ij` the logit, and `y_ij` in `{-1, 0, .., L}` the level of the
pair; pairs with `y = -1` take no part. The logit is `z_ij = scale * factor[y_ij] * s_ij` (all
factors 1 unless said otherwise), or the curve of the circle loss with margin m,

    z = scale * max(s + m, 0) * (s - m)                  at level 0
    z = scale * max(1 + m - s, 0) * (s - (1 - m))        above

whose weight, the max, is a constant to the gradient (Sun et al., CVPR 2020, section 3.2). A loss
that depends on the logits only through the row tables

    lse[i, l]     = log sum_{j: y_ij = l} exp(z_ij)
    neg_lse[i, l] = log sum_{j: y_ij = l} exp(-z_ij)        levels >= 1
    total[i, l]   = sum_{j: y_ij = l} z_ij
    highest[i, l], lowest[i, l] = max, min over the level, taken at the first such column
    softplus[i, l] = sum_{j: y_ij = l} log(1 + exp(t_il - z_ij))        levels >= 1

has, by the chain rule and `d lse[i, l] / d z_ij = exp(z_ij - lse[i, l])` where `y_ij = l`, else 0,

    G_ij = dL / dz_ij = d_lse[i, y] exp(z_ij - lse[i, y])
                        - d_neg_lse[i, y] exp(-z_ij - neg_lse[i, y]) + d_total[i, y]
                        + [j = highest_at[i, y]] d_highest[i, y]
                        + [j = lowest_at[i, y]] d_lowest[i, y]
                        - d_softplus[i, y] sigmoid(t_iy - z_ij)

(the thresholds t are log-sum-exps of lower levels: `thresholds.py`). Column tables are the row
tables of the transposed matrix; their G is added. Then, with `H = G * dz / d(scale * s)`,

    dQ = scale * H C        dC = scale * H^T Q        dscale = sum_ij H_ij s_ij = <Q, H C>
    dfactor[l] = scale * sum_{y_ij = l} G_ij s_ij

Multi-level NCE. With `A = LSE(P_k)` and `B = LSE(N_k)` (disjoint sets of levels),

    L_k = LSE(P_k and N_k) - LSE(P_k) = log(1 + exp(B - A)) = softplus(B - A)
    dL_k / dB = sigmoid(B - A) = -dL_k / dA,   dA / dlse[l] = exp(lse[l] - A) for l in P_k, the same
    for B and N_k.

The sigmoid is what `1 - p` would be for the probability p of the positives; as a difference it
loses all digits when p is close to 1.

Sigmoid loss (SigLIP). With `x = z + bias`, `sum_j w_y softplus(x)` at level 0 and `softplus(-x)`
above: separable, so that the gradient `+-w_y sigmoid(+-x)` needs no table.

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
    softplus: Tensor | None = None


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


def softplus(x: Tensor) -> Tensor:
    """`log(1 + exp(x))`; torch's own is cut off at 20."""
    return -torch.nn.functional.logsigmoid(-x)


def softplus_sums(z: Tensor, level: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """`softplus` and the sum of its derivatives in the threshold, `[N, L + 1]`."""
    sums, slopes = [torch.zeros_like(z[:, 0])], [torch.zeros_like(z[:, 0])]
    for k in range(1, thresholds.shape[1]):
        x = thresholds[:, k, None] - z
        sums.append(torch.where(level == k, softplus(x), 0.0).sum(dim=1))
        slopes.append(torch.where(level == k, torch.sigmoid(x), 0.0).sum(dim=1))
    return torch.stack(sums, dim=1), torch.stack(slopes, dim=1)


def pair_gradient(
    z: Tensor,
    level: Tensor,
    tables: Tables,
    d_tables: TableGradients,
    thresholds: Tensor | None = None,
) -> Tensor:
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
        if d_tables.softplus is not None and thresholds is not None and k > 0:
            slope = torch.sigmoid(thresholds[:, k, None] - z)
            at_level = at_level - d_tables.softplus[:, k, None] * slope
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
        loss = loss + level_weights[k - 1] * torch.where(has_positive, softplus(b - a), 0.0)
        slope = level_weights[k - 1] * torch.where(has_positive, torch.sigmoid(b - a), 0.0)
        share_b = torch.where(in_n, torch.exp(lse - b[:, None]), 0.0)
        share_a = torch.where(in_p, torch.exp(lse - a[:, None]), 0.0)
        d_lse = d_lse + slope[:, None] * (share_b - share_a)
    return loss, d_lse


def logits(
    s: Tensor, level: Tensor, scale: Tensor, factors: Tensor | None, circle: float | None
) -> tuple[Tensor, Tensor]:
    """The logits `[N, M]` of similarities s, and the factor that takes G to H."""
    if circle is not None:
        weight = torch.where(level > 0, 1 + circle - s, s + circle).clamp_min(0)
        center = torch.where(level > 0, s.new_tensor(1 - circle), s.new_tensor(circle))
        return scale * (weight * (s - center)), weight
    if factors is not None:
        factor = factors[level.clamp_min(0).long()]
        return scale * (factor * s), factor
    return scale * s, torch.ones_like(s)


def sigmoid_loss(
    z: Tensor, level: Tensor, bias: Tensor, level_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of each row `[N]`, and its G `[N, M]`; `level_weights` `[L + 1]`."""
    weight = torch.where(level >= 0, level_weights[level.clamp_min(0).long()], 0.0)
    sign = torch.where(level > 0, -1.0, 1.0).to(z.dtype)
    x = sign * (z + bias)
    loss = (weight * softplus(x)).sum(dim=1)
    return loss, weight * sign * torch.sigmoid(x)
