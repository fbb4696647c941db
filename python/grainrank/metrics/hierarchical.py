"""Average precision with graded relevance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..heads import relevance_of_levels
from ..ranks import PositiveRanks
from .arguments import highest_level, level_table


def hierarchical_average_precision(
    ranks: PositiveRanks, relevance: Sequence[float] | Tensor | None = None
) -> Tensor:
    """H-AP: average precision in which a candidate counts as much as it is relevant.

        H-AP = 1 / (sum over positives p of rel_p) * sum over positives p of h_rank_p / rank_p
        h_rank_p = rel_p + sum over positives j above p of min(rel_j, rel_p)

    Ranks are those among all candidates. With L = 1 it is `average_precision`. Only the ratios of
    the relevances matter. It is 1 for the order by levels where the relevance rises with the level.

    Args:
        ranks: exact ranks of the positives of N queries.
        relevance: of each level, `[L + 1]`, not negative, 0 for level 0; None (default): the
            paper's with alpha = 1, `(l / L) / |{candidates of level l in the row}|`, which differs
            from row to row and falls with the level where a higher level has far more candidates.

    Returns:
        float64 `[N]`; 0 for queries without a positive with a relevance.

    Raises:
        TypeError, ValueError: smooth ranks, or a `relevance` of another type, length or value.

    Source:
        HAPPIER, Ramzi et al., ECCV 2022 (arXiv 2207.04873), section 3.

    Example:
        >>> from grainrank.ranks import positive_ranks
        >>> levels, scores = torch.tensor([[1, 2, 0]]), torch.tensor([[0.9, 0.7, 0.5]])
        >>> ranks = positive_ranks(torch.ones(1, 1), scores.T, DenseLevels(levels), normalize=False)
        >>> hierarchical_average_precision(ranks).tolist()  # (0.5 / 1 + (1 + 0.5) / 2) / 1.5
        [0.8333333333333334]
    """
    max_level = highest_level(ranks)
    if relevance is None:
        table = relevance_of_levels(ranks.count)
    else:
        table = level_table("relevance", relevance, max_level, ranks.count.device)
        table = table.expand(len(ranks.count), -1)
    of_levels = table[ranks.row]  # [P, L + 1]
    own = of_levels.gather(1, ranks.level[:, None])
    h_rank = own[:, 0] + (ranks.above * torch.minimum(of_levels, own)).sum(dim=1)
    total = ranks.by_row(own[:, 0])
    return ranks.by_row(h_rank / ranks.rank) / torch.where(total > 0, total, 1.0)
