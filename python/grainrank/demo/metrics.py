"""Retrieval metrics over grains. The relevance of a candidate is the number of grains, coarse to
fine, that it shares with the query's target: 0 (another chapter) to K (the exact item).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import GrainKeys

TOP = 10
NDCG = f"ndcg@{TOP}[linear]"
_CHUNK = 256  # queries that are ranked at once: 256 x 6,359 similarities are 6 MB


@dataclass(frozen=True)
class Ranking:
    """What all metrics are computed from; `n` queries.

    indices: the 10 best candidates, best first, int64 `[n, 10]`.
    levels: their relevance, int64 `[n, 10]`.
    best_levels: the 10 highest relevances among all candidates, falling, int64 `[n, 10]`.
    targets: the exact candidate of each query, int64 `[n]`.
    """

    indices: Tensor
    levels: Tensor
    best_levels: Tensor
    targets: Tensor

    def select(self, kept: Tensor) -> Ranking:
        """The rows of a mask `[n]`."""
        return Ranking(
            self.indices[kept], self.levels[kept], self.best_levels[kept], self.targets[kept]
        )


def rank(similarities: Iterator[Tensor], targets: Tensor, grains: Tensor) -> Ranking:
    """Ranks all candidates for each query; among equals the earlier candidate goes first.

    Args:
        similarities: row blocks `[rows, M]` of the similarity of query and candidate.
        targets: `[n]`; `grains`: `[M, K]`.
    """
    indices, levels, best = [], [], []
    start = 0
    for block in similarities:
        rows = targets[start : start + len(block)]
        start += len(block)
        # topk leaves the order of equals open, a stable sort does not.
        top = block.sort(dim=1, descending=True, stable=True).indices[:, :TOP]
        shared = GrainKeys(grains[rows], grains).block(0, len(rows), len(grains))  # [rows, M]
        indices.append(top)
        levels.append(shared.gather(1, top).long())
        best.append(shared.topk(TOP, dim=1).values.long())
    return Ranking(torch.cat(indices), torch.cat(levels), torch.cat(best), targets)


def cosine_blocks(queries: Tensor, candidates: Tensor) -> Iterator[Tensor]:
    """Row blocks `[rows, M]` of the cosine of `[n, D]` and `[M, D]`."""
    candidates = torch.nn.functional.normalize(candidates, dim=1)
    for rows in queries.split(_CHUNK):
        yield torch.nn.functional.normalize(rows, dim=1) @ candidates.T


def discounted_gain(levels: Tensor) -> Tensor:
    """DCG with the level itself as gain (`linear`; not `2 ** level - 1`), of `[n, 10]`."""
    positions = torch.arange(2, levels.shape[1] + 2, dtype=torch.float64)
    return (levels / positions.log2()).sum(dim=1)


def summarise(ranking: Ranking, grain_names: Sequence[str]) -> dict[str, float]:
    """Shares and means over the queries, 0 to 1.

    `top_in_X`: the top hit shares at least grain X with the target.
    `wrong_top_in_X`: the same, of the queries whose top hit is not the exact item.
    """
    top = ranking.levels[:, 0]
    finest = len(grain_names)
    exact = ranking.indices == ranking.targets[:, None]
    ndcg = discounted_gain(ranking.levels) / discounted_gain(ranking.best_levels)
    result = {
        "recall@1": _share(exact[:, 0]),
        f"recall@{TOP}": _share(exact.any(dim=1)),
        NDCG: ndcg.mean().item(),
    }
    wrong = top[top < finest]
    for level, name in enumerate(grain_names[:-1], start=1):
        result[f"wrong_top_in_{name}"] = _share(wrong >= level)
        result[f"top_in_{name}"] = _share(top >= level)
    return result


def levels_by_rank(levels: Tensor, finest: int) -> list[list[float]]:
    """For each of the 10 ranks the share of the queries whose hit there has level 0..finest."""
    return [[_share(column == level) for level in range(finest + 1)] for column in levels.T]


def _share(hits: Tensor) -> float:
    """NaN of nothing, as there is no share then."""
    return hits.double().mean().item()
