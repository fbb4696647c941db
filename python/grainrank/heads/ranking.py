"""Heads of learning to rank: pairs of levels, and lists."""

from __future__ import annotations

import torch
from torch import Tensor

from .tables import SoftplusTables, Tables, softplus, where_positive


def pairwise_ranking(t: Tables, margin: float | Tensor = 0.0, scope: str = "row") -> Tensor:
    """`log(1 + sum over levels a > b of exp(lse[b] + neg_lse[a] + m_ab))`.

    That is every pair of a higher level against every pair of a lower one, since
    `exp(lse[b] + neg_lse[a])` is the sum of `exp(z_j - z_p)` over them.

    Args:
        t: tables `[N, L + 1]`.
        margin: of the logits: `m_ab = margin * (a - b)`, or a tensor `[L + 1, L + 1]`.
        scope: `"row"`: pairs of one row; `"batch"`: all pairs of the batch.

    Returns:
        The loss of each row, `[N]`, or of the batch, 0-d.

    Raises:
        ValueError: a margin of another shape.

    Source:
        CoSENT, Su 2022 (kexue.fm/archives/8847); margins between levels: ELVA, arXiv 2606.20280.

    Example:
        >>> from grainrank import level_statistics
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> pairwise_ranking(level_statistics(q, c, temperature=0.1), margin=1.0).shape
        torch.Size([4])
    """
    lse, neg_lse, size = t.lse, t.neg_lse, t.lse.shape[1]
    if scope == "batch":
        lse, neg_lse = (torch.logsumexp(x, dim=0, keepdim=True) for x in (lse, neg_lse))
    if isinstance(margin, Tensor):
        if tuple(margin.shape) != (size, size):
            raise ValueError(
                f"margin must be a number or have shape [L + 1, L + 1] = [{size}, {size}], "
                f"got {tuple(margin.shape)}"
            )
        margins = margin.to(lse)
    else:
        level = torch.arange(size, dtype=lse.dtype, device=lse.device)
        margins = margin * (level[:, None] - level)
    higher, lower = torch.tril_indices(size, size, offset=-1, device=lse.device)
    loss = softplus(
        torch.logsumexp(lse[:, lower] + neg_lse[:, higher] + margins[higher, lower], dim=1)
    )
    return loss[0] if scope == "batch" else loss


def list_net(t: Tables) -> Tensor:
    """`LSE{y >= 0} - sum over levels of w_l total[l]`, `w_l = e^l / sum over levels of count e^l`.

    Args:
        t: tables `[N, L + 1]`.

    Returns:
        The loss of each row, `[N]`; 0 without positives.

    Source:
        Cao et al., ICML 2007, section 4.

    Example:
        >>> from grainrank import level_statistics
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> list_net(level_statistics(q, c, temperature=1.0)).shape
        torch.Size([4])
    """
    level = torch.arange(t.lse.shape[1], dtype=t.lse.dtype, device=t.lse.device)
    gain = level.exp()
    weighted = (t.total * gain).sum(dim=1) / (t.count * gain).sum(dim=1).clamp_min(1)
    return where_positive(t, torch.logsumexp(t.lse, dim=1) - weighted)


def softmax_ranking(t: Tables, gains: Tensor | None = None) -> Tensor:
    """`sum over levels k >= 1 of gain_k (count[k] LSE{y >= 0} - total[k])`.

    Args:
        t: tables `[N, L + 1]`.
        gains: `[L]`; None: k.

    Returns:
        The loss of each row, `[N]`.

    Source:
        rax.softmax_loss; Bruch et al., ICTIR 2019.

    Example:
        >>> from grainrank import level_statistics
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> softmax_ranking(level_statistics(q, c, temperature=1.0)).shape
        torch.Size([4])
    """
    if gains is None:
        gains = torch.arange(1, t.lse.shape[1], dtype=t.lse.dtype, device=t.lse.device)
    lse = torch.logsumexp(t.lse, dim=1, keepdim=True)
    return where_positive(t, (t.count[:, 1:] * lse - t.total[:, 1:]) @ gains)


def unique_softmax(t: SoftplusTables, gains: Tensor | None = None) -> Tensor:
    """`sum over positives p of gain(y_p) softplus(LSE{0 <= y < y_p} - z_p)`.

    Args:
        t: tables `[N, L + 1]` with softplus sums against the levels below.
        gains: `[L]`; None: `2^k - 1`.

    Returns:
        The loss of each row, `[N]`.

    Source:
        rax.unique_softmax_loss; Zhu and Klabjan, WWW 2020.

    Example:
        >>> from grainrank import level_statistics
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> t = level_statistics(q, c, temperature=0.1, softplus_against="lower")
        >>> unique_softmax(t).shape
        torch.Size([4])
    """
    sums: Tensor = t.softplus[:, 1:]
    if gains is None:
        gains = (2 ** torch.arange(1, sums.shape[1] + 1, device=sums.device) - 1).to(sums.dtype)
    return sums @ gains
