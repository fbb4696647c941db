"""Heads of the hierarchy literature: RINCE, HMLC, CSL."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .contrastive import sup_con
from .nce import multi_level_nce
from .tables import SoftplusTables, Tables, softplus


def rince(per_level: Sequence[Tables], level_weights: Tensor) -> Tensor:
    """RINCE-in with a temperature for each level.

        sum over k of w_k * (LSE{0 <= y <= k} - LSE{y = k}), at the temperature of level k

    Args:
        per_level: L tables `[N, L + 1]`, `per_level[k - 1]` of the logits at level k's temperature.
        level_weights: `[L]`.

    Returns:
        The loss of each row, `[N]`; a level without positives in the row adds nothing.

    Source:
        Hoffmann et al., AAAI 2022, arXiv 2201.11736, eq. 4.

    Example:
        >>> from grainrank import level_statistics, GrainKeys
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> keys = torch.tensor([[0, 0], [0, 1], [1, 2], [1, 3]])
        >>> levels = GrainKeys(keys, keys)
        >>> stats = [level_statistics(q, c, levels, temperature=t) for t in (0.2, 0.1)]
        >>> rince(stats, torch.tensor([0.5, 0.5])).shape
        torch.Size([4])
    """
    of_level = torch.diag(level_weights)
    losses = [
        multi_level_nce(t.lse, t.count, weights, "exact", "lower")
        for t, weights in zip(per_level, of_level.unbind(), strict=True)
    ]
    return torch.stack(losses).sum(dim=0)


def rince_out(per_level: Sequence[SoftplusTables], level_weights: Tensor) -> Tensor:
    """RINCE-out: `sum over k of w_k * mean{softplus(LSE{0 <= y < k} - z_p): y_p = k}`.

    Args:
        per_level: L tables `[N, L + 1]` with softplus sums against the levels below;
            `per_level[k - 1]` at level k's temperature.
        level_weights: `[L]`.

    Returns:
        The loss of each row, `[N]`. The paper takes the mean over all pairs of the batch; here each
        row has its own mean, so that rows with many positives do not outweigh the others.

    Source:
        Hoffmann et al., AAAI 2022, arXiv 2201.11736, eq. 5.

    Example:
        >>> from grainrank import level_statistics
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> t = level_statistics(q, c, temperature=0.1, softplus_against="lower")
        >>> rince_out([t], torch.ones(1)).shape
        torch.Size([4])
    """
    means = [
        t.softplus[:, k] / t.count[:, k].clamp_min(1) for k, t in enumerate(per_level, start=1)
    ]
    return torch.stack(means, dim=1) @ level_weights


def hmlc(t: Tables, form: str) -> Tensor:
    """Hierarchical multi-label contrastive loss of the batch.

        L_k = mean over the rows with a positive of SupCon with the positives y >= k
        "hmc":  (1/L) sum over k of 2^(1/l) L_k,  l = L - k + 1
        "hce":  (1/L) sum over k of max(L_k, .., L_L)
        "hmce": (1/L) sum over k of 2^(1/l) max(L_k, .., L_L)

    l counts the layers from the finest, l = 1, as the public code does.

    Args:
        t: tables `[N, L + 1]`.
        form: `"hmc"`, `"hce"` or `"hmce"`.

    Returns:
        The loss, 0-d. A layer without positives in the batch adds nothing.

    Source:
        Zhang et al., CVPR 2022, arXiv 2204.13207, eq. 3 to 6.

    Example:
        >>> from grainrank import level_statistics
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> hmlc(level_statistics(q, c, temperature=0.1), "hmce").dim()
        0
    """
    highest = t.lse.shape[1] - 1
    loss = finer = t.lse.new_zeros(())
    for layer in range(1, highest + 1):
        k = highest - layer + 1
        rows = (t.count[:, k:].sum(dim=1) > 0).sum().clamp_min(1)
        of_layer = sup_con(t, positives_from=k).sum() / rows
        if form != "hmc":
            of_layer = finer = torch.maximum(of_layer, finer)
        loss = loss + (1.0 if form == "hce" else 2.0 ** (1 / layer)) * of_layer
    return loss / highest


def csl(t: Tables, margins: Tensor) -> Tensor:
    """Cross-scale learning: `sum over k of softplus(LSE{z: y < k} + LSE{-z: y = L} + m_k)`.

    Args:
        t: tables `[N, L + 1]`.
        margins: `[L]`, of the logits; `margins[k - 1]` for level k.

    Returns:
        The loss of each row, `[N]`; 0 without a pair of the finest level.

    Source:
        Sun et al., CVPR 2021, arXiv 2103.11781, eq. 7.

    Example:
        >>> from grainrank import level_statistics
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> csl(level_statistics(q, c, temperature=0.1), torch.tensor([1.0])).shape
        torch.Size([4])
    """
    loss = torch.zeros_like(t.lse[:, 0])
    for k in range(1, t.lse.shape[1]):
        below = torch.logsumexp(t.lse[:, :k], dim=1)
        loss = loss + softplus(below + t.neg_lse[:, -1] + margins[k - 1])
    return torch.where(t.count[:, -1] > 0, loss, 0.0)
