"""The multi-level NCE, with its gradient in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Positives = Literal["exact", "at_least"]
Negatives = Literal["lower", "unrelated"]


class _Term(NamedTuple):
    """Level k of the multi-level NCE; all tensors `[N]`."""

    level: int
    positives: slice  # columns of the tables that make up P_k
    negatives: slice  # and N_k
    lse_positives: Tensor
    lse_negatives: Tensor
    has_positive: Tensor


def _terms(lse: Tensor, count: Tensor, positives: str, negatives: str) -> Iterator[_Term]:
    levels = lse.shape[1]  # L + 1
    for k in range(1, levels):
        p = slice(k, k + 1) if positives == "exact" else slice(k, levels)
        n = slice(0, k) if negatives == "lower" else slice(0, 1)
        yield _Term(
            level=k,
            positives=p,
            negatives=n,
            lse_positives=torch.logsumexp(lse[:, p], dim=1),
            lse_negatives=torch.logsumexp(lse[:, n], dim=1),
            has_positive=count[:, p].sum(dim=1) > 0,
        )


def _term_loss(term: _Term) -> Tensor:
    """`LSE(P_k and N_k) - LSE(P_k)` as a softplus.

    Nothing cancels when the positives are confident.
    """
    loss = -logsigmoid(term.lse_positives - term.lse_negatives)
    return torch.where(term.has_positive, loss, 0.0)


def multi_level_nce(
    lse: Tensor,
    count: Tensor,
    level_weights: Tensor,
    positives: Positives = "exact",
    negatives: Negatives = "lower",
) -> Tensor:
    """Multi-level NCE of each row, from the level tables.

    `sum over k of w_k * (LSE(P_k and N_k) - LSE(P_k))`, where a level without positives in the row
    adds nothing; `P_k` is `{y = k}` ("exact") or `{y >= k}` ("at_least"), `N_k` is `{0 <= y < k}`
    ("lower") or `{y = 0}` ("unrelated"). "exact" with "lower" is RINCE-in with one temperature
    (Hoffmann et al., AAAI 2022, eq. 4); L = 1 is InfoNCE, or SupCon-in where a row has several
    positives.

    Args:
        lse: log-sum-exp of the logits of each level, `[N, L + 1]`, as `level_statistics` gives it.
        count: pairs of each level, int64 `[N, L + 1]`.
        level_weights: `[L]`; `level_weights[k - 1]` belongs to level k.
        positives: which levels are the positives of level k.
        negatives: which levels are its negatives.

    Returns:
        The loss of each row, `[N]`, dtype of `lse`, differentiable in `lse`.

    Example:
        >>> lse = torch.tensor([[1.0, 2.0]])
        >>> loss = multi_level_nce(lse, torch.tensor([[3, 1]]), torch.ones(1))
        >>> torch.allclose(loss, torch.logsumexp(lse, 1) - lse[:, 1])
        True
    """
    loss = lse.new_zeros(lse.shape[0])
    for term in _terms(lse, count, positives, negatives):
        loss = loss + level_weights[term.level - 1] * _term_loss(term)
    return loss


def multi_level_nce_gradient(
    lse: Tensor, count: Tensor, level_weights: Tensor, positives: str, negatives: str
) -> tuple[Tensor, Tensor]:
    """The loss of each row `[R]`, and its gradient in `lse` `[R, L + 1]`, without autograd.

    Computed in float64: the tables are small, and what is rounded here is rounded for a whole row.

    With `s_k = sigmoid(LSE(N_k) - LSE(P_k))`, level l of `N_k` gets `w_k s_k exp(lse_l - LSE(N_k))`
    and level l of `P_k` gets `-w_k s_k exp(lse_l - LSE(P_k))`.
    """
    dtype, lse = lse.dtype, lse.double()
    loss = lse.new_zeros(lse.shape[0])
    d_lse = torch.zeros_like(lse)
    for term in _terms(lse, count, positives, negatives):
        weight = level_weights[term.level - 1]
        loss = loss + weight * _term_loss(term)
        slope = torch.sigmoid(term.lse_negatives - term.lse_positives)
        slope = weight * torch.where(term.has_positive, slope, 0.0)
        n, p = term.negatives, term.positives
        d_lse[:, n] += slope[:, None] * torch.exp(lse[:, n] - term.lse_negatives[:, None])
        d_lse[:, p] -= slope[:, None] * torch.exp(lse[:, p] - term.lse_positives[:, None])
    return loss.to(dtype), d_lse.to(dtype)


def level_losses(
    lse: Tensor, count: Tensor, positives: str, negatives: str
) -> tuple[Tensor, Tensor]:
    """Mean term of each level, unweighted, over the rows that have it, and these rows; `[L]`."""
    losses, rows = [], []
    for term in _terms(lse, count, positives, negatives):
        used = term.has_positive.sum()
        losses.append(_term_loss(term).sum() / used.clamp_min(1))
        rows.append(used)
    return torch.stack(losses), torch.stack(rows)
