"""What is known of the positives of a batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .entries import rows_of_entries


class PositiveRanks(NamedTuple):
    """The positives of all rows, row by row, and what stands above each.

    Pairs of level -1 take no part: they are nobody's competitors.

    Example:
        The reciprocal rank of the best positive, by hand (`grainrank.metrics` has it):

        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> ranks = positive_ranks(q, c)
        >>> (1 / ranks.rank).shape, ranks.by_row(1 / ranks.rank).shape
        (torch.Size([4]), torch.Size([4]))
    """

    indptr: Tensor  #: int64 `[N + 1]`: row i has the positives `indptr[i]..indptr[i + 1]`
    indices: Tensor  #: int64 `[P]`, their candidates, ascending in a row
    level: Tensor  #: int64 `[P]`, 1..L
    similarity: Tensor  #: `[P]`, detached
    above: Tensor  #: `[P, L + 1]`, candidates of each level above the positive; int64, or smooth
    count: Tensor  # type: ignore[assignment]  #: int64 `[N, L + 1]`, pairs of each level
    #: beside smooth ones, int64 `[P, L + 1]`: the others with at least the positive's similarity
    at_least: Tensor | None = None

    @property
    def rank(self) -> Tensor:
        """`[P]`, 1 for the best candidate of the row; dtype of `above`."""
        return 1 + self.above.sum(dim=1)

    @property
    def row(self) -> Tensor:
        """int64 `[P]`, the row of each positive."""
        return rows_of_entries(self.indptr, len(self.indices))

    def exact(self) -> PositiveRanks:
        """Exact ranks, for the metrics: of smooth ones those that were counted with them, with
        `ties="pessimistic"`.

        Example:
            One sweep for the loss and for what is logged beside it:

            >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
            >>> ranks = positive_ranks(q.requires_grad_(), c, temperature=0.01)
            >>> loss = heads.smooth_ap(ranks).mean()
            >>> metrics.recall_at(ranks.exact(), 1).mean().item()
            0.0
        """
        if self.at_least is None:
            return self
        return self._replace(above=self.at_least, at_least=None)

    def by_row(self, values: Tensor) -> Tensor:
        """Sums `[N]` of values `[P]` over the positives of each row; differentiable."""
        lengths = self.indptr.diff()
        if values.is_floating_point() and len(lengths) > 0:
            # Without atomics: the same bits in every run.
            return torch.segment_reduce(values, "sum", lengths=lengths, initial=0.0)
        return values.new_zeros(len(lengths)).index_add(0, self.row, values)
