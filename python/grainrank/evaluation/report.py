"""What an evaluation found."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..metrics import (
    average_precision,
    grain_of_wrong_top,
    hierarchical_average_precision,
    level_violation_rate,
    mean_over_queries,
    ndcg_at,
    recall_at,
    reciprocal_rank,
    success_at,
)
from ..ranks import PositiveRanks

_DEPTH = 10  # ranks of `Report.top_hits_by_rank`

Share = float | None


@dataclass(frozen=True)
class LevelScores:
    """One level: a candidate is relevant from this level on. Shares of nothing are None."""

    level: int  #: 1..L
    name: str
    queries: int  #: with a candidate of this level or more; the means are over these
    recall: Mapping[int, Share]  #: by k
    success: Mapping[int, Share]  #: by k
    mrr: Share
    map: Share
    #: share of `Report.top_queries` whose top hit has this level or more
    top_hit: Share
    #: the same of those whose top hit is not of level L; None for level L
    wrong_top_hit: Share


@dataclass(frozen=True)
class Report:
    """What `evaluate_embeddings` found; every share and mean from 0 to 1, None where no query could
    take part.

    Example:
        >>> from grainrank.evaluation import evaluate_embeddings
        >>> eye = torch.eye(3)
        >>> report = evaluate_embeddings(eye, eye)
        >>> report.ndcg, report.to_dict()["by_level"][0]["mrr"]
        (1.0, 1.0)
        >>> print(report.table().splitlines()[0])
        3 of 3 queries, 3 candidates; cosine similarity, ties: last
    """

    queries: int  #: N
    judged: int  #: queries with a positive; all others take no part
    candidates: int  #: M
    max_level: int  #: L
    levels: tuple[LevelScores, ...]  #: coarse to fine
    ndcg: Share
    ndcg_name: str  #: such as `ndcg@10[linear]`
    hierarchical_ap: Share
    level_violation_rate: Share
    top_queries: int  #: with a candidate of level L: those whose top hit could have been right
    wrong: int  #: of these, with a top hit that is not of level L
    #: `[rank - 1][level - 1]`: share of `top_queries` whose candidate at that rank has that level
    #: or more
    top_hits_by_rank: tuple[tuple[float, ...], ...]
    best_by_rank: tuple[tuple[float, ...], ...]  #: the same of the best possible order
    ties: str
    similarity: str  #: `cosine` or `dot`

    def table(self) -> str:
        """Percentages, as text."""
        from .table import plain

        return plain(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, as `json.dumps` takes them."""
        return {
            "queries": self.queries,
            "judged_queries": self.judged,
            "candidates": self.candidates,
            "max_level": self.max_level,
            "similarity": self.similarity,
            "ties": self.ties,
            self.ndcg_name: self.ndcg,
            "hierarchical_ap": self.hierarchical_ap,
            "level_violation_rate": self.level_violation_rate,
            "top_hits": {"queries": self.top_queries, "wrong": self.wrong},
            "by_level": [_level_dict(scores) for scores in self.levels],
            "top_hits_by_rank": [list(row) for row in self.top_hits_by_rank],
            "best_by_rank": [list(row) for row in self.best_by_rank],
        }


class _RanksOnce(PositiveRanks):
    """Whose ranks and rows, which nearly every metric reads, are computed once."""

    @functools.cached_property
    def rank(self) -> Tensor:
        return super().rank

    @functools.cached_property
    def row(self) -> Tensor:
        return super().row


def report_of(
    ranks: PositiveRanks,
    *,
    candidates: int,
    cutoffs: Sequence[int],
    ndcg_k: int | None,
    gain: Any,
    names: tuple[str, ...] | None,
    ties: str,
    similarity: str,
) -> Report:
    """Every metric of exact ranks."""
    ranks = _RanksOnce(*ranks)
    max_level = ranks.count.shape[1] - 1
    names = names or tuple(f"level {level}" for level in range(1, max_level + 1))
    if len(names) != max_level:
        raise ValueError(
            f"level_names must hold L = {max_level} names, coarse to fine, got {len(names)}: "
            f"{', '.join(names)}"
        )
    at_least = ranks.count.flip(1).cumsum(1).flip(1)  # [N, L + 1]
    counts = (at_least > 0).sum(dim=0).tolist()  # queries with a candidate of the level or more

    def mean(values: Tensor, level: int = 1) -> Share:
        return mean_over_queries(values, ranks, level).item() if counts[level] > 0 else None

    top = grain_of_wrong_top(ranks, min_level=max_level)

    def scores(level: int) -> LevelScores:
        finest = level == max_level
        return LevelScores(
            level,
            names[level - 1],
            counts[level],
            {k: mean(recall_at(ranks, k, level), level) for k in cutoffs},
            {k: mean(success_at(ranks, k, level), level) for k in cutoffs},
            mean(reciprocal_rank(ranks, level), level),
            mean(average_precision(ranks, level), level),
            top.of_all[level - 1].item() if top.queries > 0 else None,
            top.of_wrong[level - 1].item() if top.wrong > 0 and not finest else None,
        )

    ndcg = mean(ndcg_at(ranks, ndcg_k, gain=gain))  # checks the gain
    named = gain if isinstance(gain, str) else ",".join(f"{x:g}" for x in gain)
    cut = "" if ndcg_k is None else f"@{ndcg_k}"
    could = at_least[:, max_level] > 0
    return Report(
        queries=len(ranks.count),
        judged=counts[1],
        candidates=candidates,
        max_level=max_level,
        levels=tuple(scores(level) for level in range(1, max_level + 1)),
        ndcg=ndcg,
        ndcg_name=f"ndcg{cut}[{named}]",
        hierarchical_ap=mean(hierarchical_average_precision(ranks)),
        level_violation_rate=mean(level_violation_rate(ranks)),
        top_queries=top.queries,
        wrong=top.wrong,
        top_hits_by_rank=_shares(
            _levels_at_ranks(ranks, min(_DEPTH, candidates))[could], max_level
        ),
        best_by_rank=_shares(_best_levels(at_least, min(_DEPTH, candidates))[could], max_level),
        ties=ties,
        similarity=similarity,
    )


def _levels_at_ranks(ranks: PositiveRanks, depth: int) -> Tensor:
    """Level of the candidate at each of the first ranks, int64 `[N, depth]`; of those that share a
    rank the highest.
    """
    near = ranks.rank <= depth
    place = ranks.row[near] * depth + ranks.rank[near] - 1
    flat = ranks.level.new_zeros(len(ranks.count) * depth)
    return flat.scatter_reduce(0, place, ranks.level[near], "amax").view(-1, depth)


def _best_levels(at_least: Tensor, depth: int) -> Tensor:
    """The same where the candidates are in the order of their levels."""
    rank = torch.arange(1, depth + 1, device=at_least.device)
    return (at_least[:, None, 1:] >= rank[:, None]).sum(dim=2)


def _shares(levels: Tensor, max_level: int) -> tuple[tuple[float, ...], ...]:
    """Share of the queries at each rank and level, from `[N, depth]`."""
    if len(levels) == 0:
        return ()
    steps = torch.arange(1, max_level + 1, device=levels.device)
    shares = (levels[:, :, None] >= steps).double().mean(dim=0)  # [depth, L]
    return tuple(tuple(row) for row in shares.tolist())


def _level_dict(scores: LevelScores) -> dict[str, Any]:
    return {
        "level": scores.level,
        "name": scores.name,
        "queries": scores.queries,
        **{f"recall@{k}": value for k, value in scores.recall.items()},
        **{f"success@{k}": value for k, value in scores.success.items()},
        "mrr": scores.mrr,
        "map": scores.map,
        "top_hit": scores.top_hit,
        "wrong_top_hit": scores.wrong_top_hit,
    }
