"""Heads on smooth ranks: the AP and nDCG family."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ranks.table import PositiveRanks


def _mean_over_positives(ranks: PositiveRanks, values: Tensor) -> Tensor:
    """`[N]`; 0 for a row without positives."""
    positives = ranks.count[:, 1:].sum(dim=1)
    return ranks.by_row(values) / positives.clamp_min(1)


def _has_positive(ranks: PositiveRanks) -> Tensor:
    return ranks.count[:, 1:].sum(dim=1) > 0


def smooth_ap(ranks: PositiveRanks) -> Tensor:
    """One minus the smooth average precision; levels of 1 and more are pooled.

        AP = mean over positives p of (1 + sum_{positives j != p} h_jp) / (1 + sum_{j != p} h_jp)

    Args:
        ranks: smooth ones, with the sigmoid.

    Returns:
        The loss of each row, `[N]`; 0 for a row without positives.

    Source:
        Brown et al., ECCV 2020, arXiv 2007.12163, eq. 6.

    Example:
        >>> from grainrank.ranks import positive_ranks
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> smooth_ap(positive_ranks(q, c, temperature=0.01)).shape
        torch.Size([4])
    """
    precision = (1 + ranks.above[:, 1:].sum(dim=1)) / ranks.rank
    return torch.where(_has_positive(ranks), 1 - _mean_over_positives(ranks, precision), 0.0)


def relevance_of_levels(count: Tensor, alpha: float = 1.0) -> Tensor:
    """HAPPIER's relevance `[N, L + 1]` of the levels of each row: `(l / L)^alpha / count_l`."""
    highest = count.shape[1] - 1
    level = torch.arange(highest + 1, device=count.device, dtype=torch.float64) / highest
    return torch.where(count > 0, level**alpha / count.clamp_min(1), 0.0)


def hierarchical_ap(ranks: PositiveRanks, relevance: Tensor | None = None) -> Tensor:
    """One minus the smooth hierarchical average precision.

        H-AP = (1 / sum_p rel_p) sum_p (rel_p + sum_{j: s_j >= s_p} min(rel_j, rel_p)) / rank_p

    The numerator has the step and no gradient, as in the public code; the ranks are smooth, and
    with `surrogate="upper_bound"` only candidates of lower levels push.

    Args:
        ranks: smooth ones.
        relevance: of each level, `[L + 1]` or `[N, L + 1]`, 0 for level 0; None:
            `relevance_of_levels`.

    Returns:
        The loss of each row, `[N]`; 0 for a row without positives.

    Source:
        Ramzi et al., HAPPIER, ECCV 2022, arXiv 2207.04873, eq. 3 to 5.

    Example:
        >>> from grainrank import GrainKeys
        >>> from grainrank.ranks import positive_ranks
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> keys = torch.tensor([[0, 0], [0, 1], [1, 2], [1, 3]])
        >>> levels = GrainKeys(keys, keys)
        >>> ranks = positive_ranks(q, c, levels, temperature=0.01, surrogate="upper_bound")
        >>> hierarchical_ap(ranks).shape
        torch.Size([4])
    """
    assert ranks.at_least is not None
    table = relevance_of_levels(ranks.count) if relevance is None else relevance
    table = table.to(ranks.above.dtype).expand(ranks.count.shape)
    of_levels = table[ranks.row]  # [P, L + 1]
    own = of_levels.gather(1, ranks.level[:, None])
    above = (torch.minimum(of_levels, own) * ranks.at_least).sum(dim=1)
    terms = (own[:, 0] + above) / ranks.rank
    total = ranks.by_row(own[:, 0])
    ap = ranks.by_row(terms) / torch.where(total > 0, total, 1.0)
    return torch.where(total > 0, 1 - ap, 0.0)


def smooth_recall(
    ranks: PositiveRanks, ks: Sequence[int] = (1, 2, 4, 8, 16), temperature: float = 1.0
) -> Tensor:
    """One minus the smooth recall at k, the mean over several k; levels are pooled.

        recall@k = mean over positives p of sigmoid((k - rank_p) / temperature)

    Args:
        ranks: smooth ones, with the sigmoid.
        ks: cut-offs.
        temperature: of the cut-off, in ranks.

    Returns:
        The loss of each row, `[N]`; 0 for a row without positives.

    Source:
        Patel et al., CVPR 2022, arXiv 2108.11179, eq. 6.

    Example:
        >>> from grainrank.ranks import positive_ranks
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> smooth_recall(positive_ranks(q, c, temperature=0.01)).shape
        torch.Size([4])
    """
    k = torch.tensor(ks, dtype=ranks.above.dtype, device=ranks.above.device)
    within = torch.sigmoid((k - ranks.rank[:, None]) / temperature).mean(dim=1)
    return torch.where(_has_positive(ranks), 1 - _mean_over_positives(ranks, within), 0.0)


def smooth_ndcg(ranks: PositiveRanks, gains: Tensor) -> Tensor:
    """One minus the smooth nDCG over all candidates.

        DCG = sum over positives p of gain(y_p) / log2(1 + rank_p)

    Args:
        ranks: smooth ones.
        gains: of each level, `[L + 1]`, 0 for level 0.

    Returns:
        The loss of each row, `[N]`; 0 for a row without positives.

    Source:
        Qin et al., Information Retrieval 13 (2010), ApproxNDCG; Ramzi et al., arXiv 2309.08250.

    Example:
        >>> from grainrank.ranks import positive_ranks
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> ranks = positive_ranks(q, c, temperature=0.01)
        >>> smooth_ndcg(ranks, torch.tensor([0.0, 1.0])).shape
        torch.Size([4])
    """
    gain = gains.to(ranks.above)
    dcg = ranks.by_row(gain[ranks.level] / torch.log2(1 + ranks.rank))
    ideal = ideal_dcg(ranks.count, gain)
    return torch.where(ideal > 0, 1 - dcg / torch.where(ideal > 0, ideal, 1.0), 0.0)


def ideal_dcg(count: Tensor, gains: Tensor, k: int | None = None) -> Tensor:
    """DCG `[N]` of rows in which the highest gains come first.

    Args:
        count: pairs of each level, int64 `[N, L + 1]`.
        gains: of each level, `[L + 1]`, 0 for level 0.
        k: how many candidates count; None: all.

    Example:
        >>> ideal_dcg(torch.tensor([[5, 1, 1]]), torch.tensor([0.0, 1.0, 2.0]), k=1)
        tensor([2.])
    """
    order = 1 + gains[1:].argsort(descending=True)
    ends = count[:, order].cumsum(dim=1)  # [N, L]: a run of equal gains for each level
    starts = ends - count[:, order]
    longest = int(ends[:, -1].max()) if len(ends) > 0 else 0
    places = torch.arange(2, longest + 2, dtype=gains.dtype, device=gains.device)
    discounts = torch.cat([places.new_zeros(1), (1 / places.log2()).cumsum(dim=0)])
    if k is not None:
        starts, ends = starts.clamp_max(k), ends.clamp_max(k)
    return (discounts[ends] - discounts[starts]) @ gains[order]
