"""What every level source is, and how sources are combined."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..validation import check_device, check_integers, check_length

if TYPE_CHECKING:
    from .ceilings import FalseNegativeMargin


class LevelSource:
    """Where levels come from. Users make one of the subclasses, for each batch anew."""

    #: The highest level L.
    max_level: int
    #: Names the rule and its options; with `tensors` it rebuilds the source (`from_parts`).
    kind: str
    #: What the operators carry.
    tensors: tuple[Tensor, ...]
    #: Products of reference embeddings that the levels of a block need.
    num_references: int = 0
    #: The sources that it is made of.
    members: tuple[LevelSource, ...] = ()

    def block(
        self, start: int, stop: int, num_candidates: int, device: torch.device | None = None
    ) -> Tensor:
        """Levels of the rows `start..stop`, int8 `[stop - start, M]`; `device` is for a source
        without tensors.
        """
        raise NotImplementedError

    def check(self, num_queries: int, num_candidates: int, device: torch.device) -> None:
        """Raises where the source does not fit `[N, D]` queries and `[M, D]` candidates."""
        for member in self.members:
            member.check(num_queries, num_candidates, device)
        self.check_own(num_queries, num_candidates, device)

    def check_own(self, num_queries: int, num_candidates: int, device: torch.device) -> None:
        """`check` of what its members do not have."""

    def transposed(self) -> LevelSource:
        """The levels as the candidates see the queries: the transposed matrix."""
        raise NotImplementedError

    def with_columns(
        self, column: Callable[[Tensor], Tensor], matrix: Callable[[LevelSource], LevelSource]
    ) -> LevelSource:
        """The levels of other candidates: `column` of every tensor `[M, ..]` that describes them,
        and `matrix` of every source that has something to say of single pairs.
        """
        raise NotImplementedError

    def under_ceilings(
        self, level: Tensor, similarities: Tensor, prefix: int, start: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The levels `[R, M]` of the rows from `start` on, as the rows and as the columns see them
        (`FalseNegativeMargin`).
        """
        return level, level

    def of_prefix(self, prefix: int) -> LevelSource:
        """The source for one of several prefixes of the features alone."""
        return self

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
        self.check_combines("exclude")
        return Excluded(self, query_ids, candidate_ids)

    def __or__(self, other: LevelSource) -> LevelSource:
        """Both sources: of a pair's two levels the higher, but -1 (ignored) wins over all.

        Example:
            >>> left = DenseLevels(torch.tensor([[0, 1, -1]]))
            >>> right = DenseLevels(torch.tensor([[2, 0, 3]]))
            >>> (left | right).block(0, 1, 3).tolist()
            [[2, 1, -1]]
        """
        if not isinstance(other, LevelSource):
            return NotImplemented
        for source in (self, other):
            source.check_combines("|")
        return Union(self, other)

    def check_combines(self, what: str) -> None:
        """Raises where nothing can follow."""

    def false_negative_margin(
        self,
        margin: float,
        *,
        relative: bool = False,
        reference: tuple[Tensor, Tensor] | None = None,
        curated: tuple[Tensor, Tensor] | None = None,
    ) -> FalseNegativeMargin:
        """The same levels, without the negatives that are likely to be unlabelled positives.

        A pair of level 0 is ignored where its similarity is above the ceiling of its row: the best
        similarity of the row's positives minus the margin, or, `relative`, minus that share of its
        magnitude. A row without a positive has no ceiling. In the candidates' direction the columns
        have ceilings of their own.

        Call it last: it cannot be combined further.

        Args:
            margin: in units of the similarity, or a share of it in `0 <= margin < 1`. 0: negatives
                better than the positive go; a negative margin keeps some of these.
            relative: see above.
            reference: embeddings of a frozen model, queries `[N, E]` and candidates `[M, E]`, whose
                cosine is looked at. None: the model's own similarity, at the cost of one product
                more. No gradient.
            curated: an id for each query `[N]` and candidate `[M]`, integers: a pair with equal ids
                is a hard negative that somebody chose, and is never ignored.

        Raises:
            TypeError, ValueError: an argument of the wrong type, shape or value.

        Source:
            GISTEmbed, arXiv 2402.16829 (reference); NV-Retriever, arXiv 2407.15831 (margins).

        Example:
            >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
            >>> keys = torch.arange(4)[:, None]
            >>> levels = GrainKeys(keys, keys).false_negative_margin(0.05)
            >>> multi_level_ranking_loss(q, c, levels, temperature=0.1).dim()
            0
        """
        from .ceilings import FalseNegativeMargin

        self.check_combines("false_negative_margin")
        return FalseNegativeMargin(self, margin, relative, reference, curated)


class Excluded(LevelSource):
    """`LevelSource.exclude`."""

    def __init__(self, base: LevelSource, query_ids: Tensor, candidate_ids: Tensor) -> None:
        q = check_integers("query_ids", query_ids, "[N]", 1)
        c = check_integers("candidate_ids", candidate_ids, "[M]", 1)
        self.base = base
        self.members = (base,)
        self.ids = q, c
        self.max_level = base.max_level
        self.num_references = base.num_references
        self.kind = f"exclude({base.kind})"
        self.tensors = (*base.tensors, q, c)

    def check_own(self, num_queries: int, num_candidates: int, device: torch.device) -> None:
        check_ids("query_ids", "candidate_ids", self.ids, num_queries, num_candidates, device)

    def block(
        self, start: int, stop: int, num_candidates: int, device: torch.device | None = None
    ) -> Tensor:
        q, c = self.ids
        level = self.base.block(start, stop, num_candidates, device)
        return level.masked_fill(q[start:stop, None] == c, -1)

    def transposed(self) -> LevelSource:
        q, c = self.ids
        return Excluded(self.base.transposed(), c, q)

    def with_columns(
        self, column: Callable[[Tensor], Tensor], matrix: Callable[[LevelSource], LevelSource]
    ) -> LevelSource:
        q, c = self.ids
        return Excluded(self.base.with_columns(column, matrix), q, column(c))


class Union(LevelSource):
    """`a | b`."""

    def __init__(self, left: LevelSource, right: LevelSource) -> None:
        self.members = (left, right)
        self.max_level = max(left.max_level, right.max_level)
        self.num_references = left.num_references + right.num_references
        self.kind = f"union({left.kind},{right.kind})"
        self.tensors = (*left.tensors, *right.tensors)

    def block(
        self, start: int, stop: int, num_candidates: int, device: torch.device | None = None
    ) -> Tensor:
        a, b = (member.block(start, stop, num_candidates, device) for member in self.members)
        return torch.where((a < 0) | (b < 0), -1, torch.maximum(a, b))

    def transposed(self) -> LevelSource:
        left, right = self.members
        return Union(left.transposed(), right.transposed())

    def with_columns(
        self, column: Callable[[Tensor], Tensor], matrix: Callable[[LevelSource], LevelSource]
    ) -> LevelSource:
        left, right = self.members
        return Union(left.with_columns(column, matrix), right.with_columns(column, matrix))


def check_ids(
    query_name: str,
    candidate_name: str,
    ids: tuple[Tensor, Tensor],
    num_queries: int,
    num_candidates: int,
    device: torch.device,
) -> None:
    q, c = ids
    check_length(query_name, q, num_queries, "N", "queries")
    check_length(candidate_name, c, num_candidates, "M", "candidates")
    check_device(query_name, q, device)
    check_device(candidate_name, c, device)


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
