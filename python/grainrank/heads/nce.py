"""The multi-level NCE, with its gradient in closed form."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..reference import EMPTY

Positives = Literal["exact", "at_least"]
Negatives = Literal["lower", "unrelated"]

_FAR = -700.0  # exp of it is as good as 0 beside 1; below, it is 25 times slower


def _levels_of_terms(
    levels: int, device: torch.device, positives: str, negatives: str
) -> tuple[Tensor, Tensor]:
    """Which levels make up P_k and N_k, bool `[L, L + 1]` each, k = 1..L."""
    level = torch.arange(levels, device=device)
    k = level[1:, None]
    p = level == k if positives == "exact" else level >= k
    n = level < k if negatives == "lower" else (level == 0).expand_as(p)
    return p, n


class _Terms(NamedTuple):
    """The terms of all levels k = 1..L at once: few operations on small tensors."""

    lse_positives: Tensor  # [..., L]
    lse_negatives: Tensor  # [..., L]
    has_positive: Tensor  # [..., L]

    @staticmethod
    def of(lse: Tensor, count: Tensor, positives: str, negatives: str) -> _Terms:
        """From tables `[..., L + 1]`."""
        p, n = _levels_of_terms(lse.shape[-1], lse.device, positives, negatives)
        each = lse[..., None, :]
        return _Terms(
            torch.logsumexp(torch.where(p, each, EMPTY), dim=-1),
            torch.logsumexp(torch.where(n, each, EMPTY), dim=-1),
            ((count[..., None, :] > 0) & p).any(dim=-1),
        )

    def losses(self) -> Tensor:
        """`LSE(P_k and N_k) - LSE(P_k)` `[..., L]` as a softplus.

        Nothing cancels when the positives are confident.
        """
        loss = -logsigmoid(self.lse_positives - self.lse_negatives)
        return torch.where(self.has_positive, loss, 0.0)


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
    losses = _Terms.of(lse, count, positives, negatives).losses()
    return (losses * level_weights).sum(dim=-1)


def multi_level_nce_gradient(
    lse: Tensor, count: Tensor, level_weights: Tensor, positives: str, negatives: str
) -> tuple[Tensor, Tensor]:
    """The loss of each row `[V, R]`, and its gradient in lse `[V, R, L + 1]`, without autograd.

    Of tables `[V, R, L + 1]` with weights `[V, L]`. Computed in float64: the tables are small, and
    what is rounded here is rounded for a whole row.

    With `s_k = sigmoid(LSE(N_k) - LSE(P_k))`, level l of `N_k` gets `w_k s_k exp(lse_l - LSE(N_k))`
    and level l of `P_k` gets `-w_k s_k exp(lse_l - LSE(P_k))`.
    """
    # Rows last: reductions go over levels, and numbers of a row lie side by side.
    dtype, each = lse.dtype, lse.movedim(-1, 0).contiguous().double()  # [L + 1, V, R]
    p, n = _levels_of_terms(len(each), lse.device, positives, negatives)
    members = torch.stack((p, n))[..., None, None]  # [2, L, L + 1, 1, 1]
    each = torch.where(members, each, EMPTY)
    highest = each.amax(dim=2, keepdim=True)
    shares = each.sub_(highest).clamp_(min=_FAR).exp_()
    sums = shares.sum(dim=2, keepdim=True)
    of_positives, of_negatives = (highest + sums.log())[:, :, 0]  # LSE(P_k), LSE(N_k): [L, V, R]
    shares /= sums
    weights = level_weights.t()[..., None].double()
    there = (count.movedim(-1, 0) > 0) & members[0]
    weights = torch.where(there.any(dim=1), weights, 0.0)  # [L, V, R]
    margin = of_positives - of_negatives
    slope = torch.sigmoid(-margin) * weights
    d_lse = (slope[:, None] * (shares[1] - shares[0])).sum(dim=0)
    losses = (logsigmoid(margin) * -weights).sum(dim=0)
    return losses.to(dtype), d_lse.to(dtype).movedim(0, -1)


def level_sums(lse: Tensor, count: Tensor, positives: str, negatives: str) -> tuple[Tensor, Tensor]:
    """Sum of each level's term, unweighted, over the rows that have it, and these rows; `[L]`."""
    terms = _Terms.of(lse, count, positives, negatives)
    rows = terms.has_positive.sum(dim=0)
    return terms.losses().sum(dim=0), rows
