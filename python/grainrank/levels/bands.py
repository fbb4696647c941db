"""Levels from the similarity of reference embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_rows

from ..validation import (
    MAX_LEVEL,
    check_count,
    check_device,
    check_integers,
    check_length,
    check_tensor,
)
from .base import LevelSource

_BLOCK = 2**22  # similarities at a time


class SimilarityBands(LevelSource):
    """The level of a pair is the band that its reference similarity falls into.

        level_ij = number of thresholds t_1 <= .. <= t_L with similarity_ij >= t_l

    The reference is a frozen model, or the detached embeddings themselves: no gradient. Its product
    is computed row block by row block, in float32.

    Args:
        query_reference: embeddings `[N, E]`, floating.
        candidate_reference: embeddings `[M, E]`.
        thresholds: L numbers, ascending, or a tensor `[L]` or, for each row its own, `[N, L]`.
        normalize: cosine similarity (default); False: dot product.

    L is at most 15.

    Raises:
        TypeError: references that are not floating tensors, thresholds that are not numbers.
        ValueError: shapes that do not fit each other, thresholds that are not ascending, L = 0 or
            above 15; a positive outside `0..M - 1`, quantiles outside 0..1.

    Source:
        ELVA, arXiv 2606.20280: negatives ranked by their similarity to the positive.

    Example:
        >>> q = torch.tensor([[1.0, 0.0]])
        >>> c = torch.tensor([[1.0, 0.1], [1.0, 1.0], [0.0, 1.0]])
        >>> SimilarityBands(q, c, [0.5, 0.9]).block(0, 1, 3).tolist()
        [[2, 1, 0]]
    """

    def __init__(
        self,
        query_reference: Tensor,
        candidate_reference: Tensor,
        thresholds: Sequence[float] | Tensor,
        normalize: bool = True,
    ) -> None:
        q, c = check_references(query_reference, candidate_reference, normalize)
        t = _numbers("thresholds", thresholds, q.device)
        given = tuple(t.shape)
        t = t[None] if t.dim() == 1 else t
        if t.dim() != 2 or t.shape[0] not in (1, q.shape[0]) or not 1 <= t.shape[1] <= MAX_LEVEL:
            raise ValueError(
                f"thresholds must have shape [L] or [N, L] = [{q.shape[0]}, L] with L in "
                f"1..{MAX_LEVEL}, got {given}"
            )
        if isinstance(thresholds, Sequence) and list(thresholds) != sorted(thresholds):
            raise ValueError(f"thresholds must be ascending, got {list(thresholds)}")
        self._set("rows", (q, c, t), len(given) == 2 and given[0] == q.shape[0])

    def _set(self, side: str, tensors: tuple[Tensor, Tensor, Tensor], own: bool) -> None:
        self.side = side  # whose thresholds they are
        self.own_thresholds = own  # of each, not of all
        self.kind = f"bands:{side}" + (":own" if own else "")
        self.tensors = tensors
        self.max_level = tensors[2].shape[1]
        self.num_references = 1

    @classmethod
    def from_tensors(
        cls, side: str, tensors: Sequence[Tensor], own_thresholds: bool
    ) -> SimilarityBands:
        """From what another has, without reading the tensors."""
        self = cls.__new__(cls)
        q, c, t = tensors
        self._set(side, (q, c, t), own_thresholds)
        return self

    @classmethod
    def from_positives(
        cls,
        candidate_reference: Tensor,
        thresholds: Sequence[float] | Tensor,
        positives: Tensor | None = None,
        normalize: bool = True,
        num_queries: int | None = None,
    ) -> SimilarityBands:
        """ELVA's case: the similarity of the candidate to the row's positive, no labels needed.

        Args:
            candidate_reference: embeddings `[M, E]`.
            thresholds: as above. The positive is in the highest band, with cosine 1; candidates
                that share most with it come next.
            positives: the positive of each row, a candidate's number, integers `[N]`; None:
                candidate i for query i.
            normalize: cosine similarity (default); False: dot product.
            num_queries: N, where `positives` is None and there are more candidates than queries.

        Example:
            >>> c = torch.tensor([[1.0, 0.1], [1.0, 1.0], [0.0, 1.0]])
            >>> SimilarityBands.from_positives(c, [0.5, 0.9]).block(0, 3, 3).tolist()
            [[2, 1, 0], [1, 2, 1], [0, 1, 2]]
        """
        reference = check_tensor("candidate_reference", candidate_reference)
        if num_queries is not None:
            check_count("num_queries", num_queries)
        if positives is None:
            queries = reference[:num_queries]
        else:
            at = check_integers("positives", positives, "[N]", 1).long()
            size = reference.shape[0]
            if at.numel() > 0 and not 0 <= int(at.min()) <= int(at.max()) < size:
                raise ValueError(
                    f"positives must lie in 0..{size - 1}, rows of candidate_reference, "
                    f"got {int(at.min())}..{int(at.max())}"
                )
            queries = reference[at]
        return cls(queries, reference, thresholds, normalize)

    @classmethod
    def from_quantiles(
        cls,
        query_reference: Tensor,
        candidate_reference: Tensor,
        quantiles: Sequence[float],
        normalize: bool = True,
    ) -> SimilarityBands:
        """Thresholds of each row at quantiles of its similarities, ascending in 0..1.

        `[0.9, 0.99]`: the best 1% of the row's candidates have level 2, the next 9% level 1. A
        threshold lies midway between two neighbouring similarities, so that rounding moves no pair.

        Example:
            >>> c = torch.tensor([[1.0, 0.1], [1.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
            >>> SimilarityBands.from_quantiles(c[:1], c, [0.5, 0.75]).block(0, 1, 4).tolist()
            [[2, 1, 0, 0]]
        """
        given = _numbers("quantiles", quantiles, torch.device("cpu")).tolist()
        inside = isinstance(given, list) and all(
            isinstance(x, float) and 0 <= x <= 1 for x in given
        )
        if not inside or not 1 <= len(given) <= MAX_LEVEL or given != sorted(given):
            raise ValueError(
                f"quantiles must be ascending in 0..1, 1 to {MAX_LEVEL} numbers, got {quantiles}"
            )
        q, c = check_references(query_reference, candidate_reference, normalize)
        m = c.shape[0]
        for name, x in (("query_reference", q), ("candidate_reference", c)):
            if x.shape[0] == 0:
                raise ValueError(f"{name} must have at least one row, got none")
        at = [round(x * m) for x in quantiles]
        rows = max(1, _BLOCK // m)
        thresholds = []
        for start in range(0, q.shape[0], rows):
            values = (q[start : start + rows] @ c.T).sort(dim=1).values
            edge = values.new_full((values.shape[0], 1), torch.inf)
            values = torch.cat([-edge, values, edge], dim=1)
            thresholds.append(torch.stack([(values[:, i] + values[:, i + 1]) / 2 for i in at], 1))
        return cls(q, c, torch.cat(thresholds), normalize=False)

    def check_own(self, num_queries: int, num_candidates: int, device: torch.device) -> None:
        q, c, _ = self.tensors
        check_length("query_reference", q, num_queries, "N", "queries")
        check_length("candidate_reference", c, num_candidates, "M", "candidates")
        check_device("query_reference", q, device)

    def block(
        self, start: int, stop: int, num_candidates: int, device: torch.device | None = None
    ) -> Tensor:
        q, c, thresholds = self.tensors
        similarity = q[start:stop] @ c.T
        level = torch.zeros_like(similarity, dtype=torch.int8)
        for threshold in thresholds.unbind(dim=1):
            if self.side == "rows" and len(threshold) > 1:
                threshold = threshold[start:stop, None]
            level += similarity >= threshold
        return level

    def transposed(self) -> LevelSource:
        q, c, thresholds = self.tensors
        side = "columns" if self.side == "rows" else "rows"
        return SimilarityBands.from_tensors(side, (c, q, thresholds), self.own_thresholds)

    def with_columns(
        self, column: Callable[[Tensor], Tensor], matrix: Callable[[LevelSource], LevelSource]
    ) -> LevelSource:
        q, c, thresholds = self.tensors
        if self.side == "columns" and self.own_thresholds:
            thresholds = column(thresholds)
        tensors = q, column(c), thresholds
        return SimilarityBands.from_tensors(self.side, tensors, self.own_thresholds)


def _numbers(name: str, values: Sequence[float] | Tensor, device: torch.device) -> Tensor:
    """In float32, detached."""
    if isinstance(values, Tensor) and values.is_complex():
        raise TypeError(f"{name} must be real numbers, got {values.dtype}")
    try:
        return torch.as_tensor(values, dtype=torch.float32, device=device).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be numbers or a tensor of them, got {values!r}") from error


def check_references(
    query_reference: object, candidate_reference: object, normalize: bool
) -> tuple[Tensor, Tensor]:
    """`[N, E]` and `[M, E]`, float32, detached, of length 1 if `normalize`."""
    q = check_tensor("query_reference", query_reference)
    c = check_tensor("candidate_reference", candidate_reference)
    for name, x in (("query_reference", q), ("candidate_reference", c)):
        if not x.dtype.is_floating_point:
            raise TypeError(f"{name} must be floating, got {x.dtype}")
        if x.dim() != 2:
            raise ValueError(f"{name} must be two-dimensional, got shape {tuple(x.shape)}")
    if q.shape[1] != c.shape[1]:
        raise ValueError(
            f"candidate_reference must have E = {q.shape[1]} features like query_reference, "
            f"got {c.shape[1]}"
        )
    check_device("candidate_reference", c, q.device)
    q, c = q.detach().float(), c.detach().float()
    return (unit_rows(q, dim=1), unit_rows(c, dim=1)) if normalize else (q, c)
