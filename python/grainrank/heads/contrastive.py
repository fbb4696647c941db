"""Heads with one level of positives: levels of 1 and more are pooled."""

from __future__ import annotations

import torch
from torch import Tensor

from .tables import Tables, lse_of_positives, softplus, where_positive


def info_nce(t: Tables) -> Tensor:
    """`LSE{y >= 0} - LSE{y >= 1}`, as `softplus(lse[0] - LSE(lse[1:]))`, where nothing cancels.

    Args:
        t: tables `[N, L + 1]`.

    Returns:
        The loss of each row, `[N]`.

    Source:
        van den Oord et al. 2018, arXiv 1807.03748, eq. 4.

    Example:
        >>> from grainrank import level_statistics
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> info_nce(level_statistics(q, c, temperature=0.1)).shape
        torch.Size([4])
    """
    return where_positive(t, softplus(t.lse[:, 0] - lse_of_positives(t)))


def sup_con(t: Tables, positives_from: int = 1) -> Tensor:
    """`LSE{y >= 0} - mean{z: y >= positives_from}`, SupCon "out".

    Written as `softplus(LSE(rest) - LSE(positives)) + (LSE(positives) - mean)`: the first part does
    not cancel where the positives are confident.

    Args:
        t: tables `[N, L + 1]`.
        positives_from: the lowest level of the positives.

    Returns:
        The loss of each row, `[N]`; 0 without positives.

    Source:
        Khosla et al., NeurIPS 2020, arXiv 2004.11362, eq. 2.

    Example:
        >>> from grainrank import level_statistics
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> sup_con(level_statistics(q, c, temperature=0.1)).shape
        torch.Size([4])
    """
    k = positives_from
    positives, rest = (torch.logsumexp(x, dim=1) for x in (t.lse[:, k:], t.lse[:, :k]))
    number = t.count[:, k:].sum(dim=1)
    mean = t.total[:, k:].sum(dim=1) / number.clamp_min(1)
    return torch.where(number > 0, softplus(rest - positives) + (positives - mean), 0.0)


def hard_negative_nce(t: Tables, stronger: Tables, weaker: Tables) -> Tensor:
    """InfoNCE with `log n + LSE{(1 + b) z} - LSE{b z}` over the n negatives in place of LSE{z}.

    Args:
        t: tables `[N, L + 1]` of the logits z, read at the levels of 1 and more.
        stronger: those of `(1 + b) z`, read at level 0; may be `t` with such a scale of level 0.
        weaker: those of `b z`, read at level 0.

    Returns:
        The loss of each row, `[N]`; 0 without positives or without negatives.

    Source:
        Robinson et al., ICLR 2021, arXiv 2010.04592, eq. 4.

    Example:
        >>> from grainrank import level_statistics
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> z, strong, weak = (level_statistics(q, c, logit_scale=s) for s in (10.0, 15.0, 5.0))
        >>> hard_negative_nce(z, strong, weak).shape
        torch.Size([4])
    """
    number = t.count[:, 0]
    negatives = stronger.lse[:, 0] - weaker.lse[:, 0] + number.clamp_min(1).to(t.lse.dtype).log()
    loss = softplus(negatives - lse_of_positives(t))
    return where_positive(t, torch.where(number > 0, loss, 0.0))
