"""Heads of metric learning: Circle and MultiSimilarity."""

from __future__ import annotations

import torch
from torch import Tensor

from .tables import Tables, softplus, where_positive


def circle(t: Tables) -> Tensor:
    """`softplus(LSE{z: y = 0} + LSE{-z: y >= 1})` of the logits of the circle loss.

    Args:
        t: tables `[N, L + 1]` of logits bent by the circle's weights (`reference.logits`).

    Returns:
        The loss of each row, `[N]`; 0 without positives or without negatives.

    Source:
        Sun et al., CVPR 2020, arXiv 2002.10857, eq. 6.
    """
    return softplus(t.lse[:, 0] + torch.logsumexp(t.neg_lse[:, 1:], dim=1))


def multi_similarity(
    positives: Tables, negatives: Tables, alpha: float, beta: float, base: float
) -> Tensor:
    """`log(1 + sum exp(-alpha (s - base))) / alpha + log(1 + sum exp(beta (s - base))) / beta`.

    The first sum is over the positives, the second over level 0.

    Args:
        positives: tables `[N, L + 1]` of `alpha * s`, read at the levels of 1 and more.
        negatives: tables of `beta * s`, read at level 0; may be the same tables, with a scale for
            each level.
        alpha: the scale of the positives.
        beta: the scale of the negatives.
        base: the similarity that both are measured from.

    Returns:
        The loss of each row, `[N]`; 0 without positives.

    Source:
        Wang et al., CVPR 2019, arXiv 1904.06627, eq. 8.

    Example:
        >>> from grainrank import level_statistics
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> t = level_statistics(q, c, logit_scale=1.0, level_scales=[50.0, 2.0])
        >>> multi_similarity(t, t, alpha=2.0, beta=50.0, base=0.5).shape
        torch.Size([4])
    """
    pull = softplus(torch.logsumexp(positives.neg_lse[:, 1:], dim=1) + alpha * base) / alpha
    push = softplus(negatives.lse[:, 0] - beta * base) / beta
    return where_positive(positives, pull + push)
