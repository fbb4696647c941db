"""Levels from positions and from the keys of a label hierarchy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..validation import MAX_LEVEL, check_choice, check_device, check_integers, check_length
from .base import LevelSource

Match = Literal["prefix", "count"]


class Diagonal(LevelSource):
    """Candidate i is the positive of query i, at level 1; every other pair is a negative.

    What `levels=None` means. With M > N the further candidates are negatives (hard negatives);
    transposed, there may be more queries.
    """

    max_level = 1
    kind = "diagonal"
    tensors = ()

    def __init__(self, *, more_queries: bool = False) -> None:
        self._more_queries = more_queries

    def transposed(self) -> LevelSource:
        return Diagonal(more_queries=not self._more_queries)

    def with_columns(
        self, column: Callable[[Tensor], Tensor], matrix: Callable[[LevelSource], LevelSource]
    ) -> LevelSource:
        return matrix(self)

    def check_own(self, num_queries: int, num_candidates: int, device: torch.device) -> None:
        if not self._more_queries and num_candidates < num_queries:
            raise ValueError(
                f"candidates must have at least N = {num_queries} rows when levels is None "
                f"(candidate i is the positive of query i), got {num_candidates}; "
                f"pass levels=GrainKeys(...) to say which candidates are positives"
            )

    def block(
        self, start: int, stop: int, num_candidates: int, device: torch.device | None = None
    ) -> Tensor:
        rows = torch.arange(start, stop, device=device)[:, None]
        return (rows == torch.arange(num_candidates, device=device)).to(torch.int8)


class GrainKeys(LevelSource):
    """Levels from the keys of a label hierarchy: how many grains two items share.

    Args:
        query_keys: integers `[N, K]`, one column for each grain, coarse to fine. A negative key is
            unknown and equals nothing.
        candidate_keys: integers `[M, K]`, the same grains.
        match: `"prefix"` (default): the level is the number of leading equal keys, so a finer key
            counts only below equal coarser ones. `"count"`: the number of equal keys, for grains
            that are not nested.

    The highest level L is K; K is at most 15.

    Raises:
        TypeError: keys that are not integer tensors.
        ValueError: shapes that do not fit each other or the embeddings, K = 0 or K > 15.

    Example:
        >>> query = torch.tensor([[0, 3, 7]])
        >>> candidates = torch.tensor([[0, 3, 7], [0, 3, 8], [0, 4, 7], [1, 3, 7], [0, 3, -1]])
        >>> GrainKeys(query, candidates).block(0, 1, 5).tolist()
        [[3, 2, 1, 0, 2]]
        >>> GrainKeys(query, candidates, match="count").block(0, 1, 5).tolist()
        [[3, 2, 2, 2, 2]]
    """

    def __init__(self, query_keys: Tensor, candidate_keys: Tensor, match: Match = "prefix") -> None:
        q = check_integers("query_keys", query_keys, "[N, K]", 2)
        c = check_integers("candidate_keys", candidate_keys, "[M, K]", 2)
        if q.shape[1] != c.shape[1]:
            raise ValueError(
                f"candidate_keys must have K = {q.shape[1]} columns like query_keys, "
                f"got {c.shape[1]}; give both the same grains"
            )
        if not 1 <= q.shape[1] <= MAX_LEVEL:
            raise ValueError(
                f"query_keys must have 1 to {MAX_LEVEL} columns, got {q.shape[1]}; "
                f"leave out grains that no loss term needs"
            )
        check_choice("match", match, ("prefix", "count"))
        self.max_level = q.shape[1]
        self.match = match
        self.kind = f"keys:{match}"
        self.tensors = (q, c)

    def check_own(self, num_queries: int, num_candidates: int, device: torch.device) -> None:
        q, c = self.tensors
        check_length("query_keys", q, num_queries, "N", "queries")
        check_length("candidate_keys", c, num_candidates, "M", "candidates")
        check_device("query_keys", q, device)
        check_device("candidate_keys", c, device)

    def block(
        self, start: int, stop: int, num_candidates: int, device: torch.device | None = None
    ) -> Tensor:
        q, c = self.tensors
        level = torch.zeros(stop - start, c.shape[0], dtype=torch.int8, device=q.device)  # [R, M]
        leading = torch.ones_like(level, dtype=torch.bool)
        for k in range(self.max_level):
            key = q[start:stop, k, None]
            equal = (key == c[:, k]) & (key >= 0)
            leading = leading & equal
            level = level + (leading if self.match == "prefix" else equal)
        return level

    def transposed(self) -> LevelSource:
        q, c = self.tensors
        return GrainKeys(c, q, self.match)

    def with_columns(
        self, column: Callable[[Tensor], Tensor], matrix: Callable[[LevelSource], LevelSource]
    ) -> LevelSource:
        q, c = self.tensors
        return GrainKeys(q, column(c), self.match)
