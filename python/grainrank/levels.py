"""Level sources: the level of a pair (query i, candidate j) from O(N + M) data.

A level is `-1` (ignored), `0` (negative) or `1..L` (positive, higher is finer). The matrix of
levels is never built by the fused backends; `LevelSource.block` builds a row block of it for the
reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .validation import MAX_LEVEL, check_choice, check_device, check_integers, check_length

Match = Literal["prefix", "count"]


class LevelSource:
    """Where levels come from. Users make one of the subclasses, for each batch anew."""

    #: The highest level L.
    max_level: int
    #: Names the rule and its options; with `tensors` it rebuilds the source (`from_parts`).
    kind: str
    #: What the operators carry.
    tensors: tuple[Tensor, ...]

    def block(
        self, start: int, stop: int, num_candidates: int, device: torch.device | None = None
    ) -> Tensor:
        """Levels of the rows `start..stop`, int8 `[stop - start, M]`; `device` is for a source
        without tensors.
        """
        raise NotImplementedError

    def check(self, num_queries: int, num_candidates: int, device: torch.device) -> None:
        """Raises where the source does not fit `[N, D]` queries and `[M, D]` candidates."""
        raise NotImplementedError

    def exclude(self, query_ids: Tensor, candidate_ids: Tensor) -> LevelSource:
        """The same levels, but pairs of the same item are ignored (level -1).

        Use it where a candidate may be the query itself, or another copy of it.

        Args:
            query_ids: item of each query, integers `[N]`.
            candidate_ids: item of each candidate, integers `[M]`.

        Raises:
            TypeError, ValueError: not integers, or not one-dimensional.

        Example:
            >>> labels = torch.tensor([[0, 1], [0, 2], [0, 1]])
            >>> ids = torch.arange(3)
            >>> GrainKeys(labels, labels).exclude(ids, ids).block(0, 3, 3).tolist()
            [[-1, 1, 2], [1, -1, 1], [2, 1, -1]]
        """
        return _Excluded(self, query_ids, candidate_ids)


class Diagonal(LevelSource):
    """Candidate i is the positive of query i, at level 1; every other pair is a negative.

    What `levels=None` means. With M > N the further candidates are negatives (hard negatives).
    """

    max_level = 1
    kind = "diagonal"
    tensors = ()

    def check(self, num_queries: int, num_candidates: int, device: torch.device) -> None:
        if num_candidates < num_queries:
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

    def check(self, num_queries: int, num_candidates: int, device: torch.device) -> None:
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


class DenseLevels(LevelSource):
    """Levels given as a matrix, for small batches and tests.

    Args:
        levels: integers `[N, M]`, -1 ignored, 0 negative, 1..L.
        max_level: L. `None` (default) reads it from the data; pass it where the data must not be
            read, as under `torch.compile(fullgraph=True)`.

    Raises:
        TypeError: not an integer tensor.
        ValueError: wrong shape, a level below -1 or above `max_level`, a `max_level` outside 1..15.

    Example:
        >>> DenseLevels(torch.tensor([[2, 0, -1]])).max_level
        2
    """

    kind = "dense"

    def __init__(self, levels: Tensor, max_level: int | None = None) -> None:
        tensor = check_integers("levels", levels, "[N, M]", 2)
        if max_level is None:
            low, high = (int(x) for x in tensor.aminmax()) if tensor.numel() else (0, 0)
            if low < -1 or high > MAX_LEVEL:
                raise ValueError(
                    f"levels must lie in -1..{MAX_LEVEL}, got {low}..{high}; "
                    f"merge grades into at most {MAX_LEVEL} levels"
                )
            max_level = max(high, 1)
        if isinstance(max_level, bool) or not isinstance(max_level, int):
            raise TypeError(f"max_level must be an int or None, got {type(max_level).__name__}")
        if not 1 <= max_level <= MAX_LEVEL:
            raise ValueError(f"max_level must lie in 1..{MAX_LEVEL}, got {max_level}")
        self.max_level = max_level
        self.tensors = (tensor,)

    def check(self, num_queries: int, num_candidates: int, device: torch.device) -> None:
        (levels,) = self.tensors
        if tuple(levels.shape) != (num_queries, num_candidates):
            raise ValueError(
                f"levels must have shape [N, M] = [{num_queries}, {num_candidates}], "
                f"got {tuple(levels.shape)}"
            )
        check_device("levels", levels, device)

    def block(
        self, start: int, stop: int, num_candidates: int, device: torch.device | None = None
    ) -> Tensor:
        block = self.tensors[0][start:stop]
        check_level_range(block, self.max_level)
        return block.to(torch.int8)


class _Excluded(LevelSource):
    def __init__(self, base: LevelSource, query_ids: Tensor, candidate_ids: Tensor) -> None:
        q = check_integers("query_ids", query_ids, "[N]", 1)
        c = check_integers("candidate_ids", candidate_ids, "[M]", 1)
        self.base = base
        self.max_level = base.max_level
        self.kind = f"{base.kind}+exclude"
        self.tensors = (*base.tensors, q, c)

    def check(self, num_queries: int, num_candidates: int, device: torch.device) -> None:
        self.base.check(num_queries, num_candidates, device)
        *_, q, c = self.tensors
        check_length("query_ids", q, num_queries, "N", "queries")
        check_length("candidate_ids", c, num_candidates, "M", "candidates")
        check_device("query_ids", q, device)
        check_device("candidate_ids", c, device)

    def block(
        self, start: int, stop: int, num_candidates: int, device: torch.device | None = None
    ) -> Tensor:
        *_, q, c = self.tensors
        level = self.base.block(start, stop, num_candidates, device)
        return level.masked_fill(q[start:stop, None] == c, -1)

    def exclude(self, query_ids: Tensor, candidate_ids: Tensor) -> LevelSource:
        raise ValueError(
            "exclude was already called on these levels; "
            "give items that belong together one id and call it once"
        )


def from_parts(kind: str, tensors: Sequence[Tensor], max_level: int) -> LevelSource:
    """The source that `kind`, `tensors` and `max_level` were read from."""
    base, _, modifier = kind.partition("+")
    if modifier:
        *rest, query_ids, candidate_ids = tensors
        return _Excluded(from_parts(base, rest, max_level), query_ids, candidate_ids)
    if base == "diagonal":
        return Diagonal()
    if base == "dense":
        return DenseLevels(tensors[0], max_level)
    return GrainKeys(tensors[0], tensors[1], "count" if base == "keys:count" else "prefix")


def as_source(levels: LevelSource | None) -> LevelSource:
    if levels is None:
        return Diagonal()
    if not isinstance(levels, LevelSource):
        raise TypeError(
            f"levels must be None or a level source, got {type(levels).__name__}; "
            f"wrap labels as GrainKeys(query_keys, candidate_keys), "
            f"or a matrix as DenseLevels(levels)"
        )
    return levels


def check_level_range(levels: Tensor, max_level: int) -> None:
    """Raises for a level below -1 or above L, before a conversion to int8 could wrap it."""
    low, high = levels.aminmax()  # not `levels < -1`: in uint8 that is `levels < 255`
    if int(low) < -1 or int(high) > max_level:
        raise level_range_error(max_level)


def level_range_error(max_level: int) -> ValueError:
    return ValueError(
        f"levels must lie in -1..{max_level} (max_level), got a level outside; "
        f"pass a larger max_level, or clamp the levels"
    )
