"""The level tables as the backends exchange them, and their gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class TableSet(NamedTuple):
    """Tables `[..., N, L + 1]`, as `LevelStatistics` describes them; None: not wanted.

    `softplus[i, k]` is the sum over the positives p of level k of `softplus(t - z_ip)`, with t the
    log-sum-exp of the level's negatives, and `slope[i, k]` the sum of the derivatives in t.
    """

    lse: Tensor
    neg_lse: Tensor | None
    total: Tensor
    count: Tensor  # type: ignore[assignment]
    highest: Tensor | None
    lowest: Tensor | None
    highest_at: Tensor | None
    lowest_at: Tensor | None
    softplus: Tensor | None = None
    slope: Tensor | None = None

    @staticmethod
    def empty(
        *shape: int,
        dtype: torch.dtype,
        device: torch.device,
        full: bool,
        softplus: bool = False,
    ) -> TableSet:
        """Memory for tables of this shape, `(..., N, L + 1)`."""

        def floats(wanted: bool = True) -> Any:
            return torch.empty(shape, dtype=dtype, device=device) if wanted else None

        def integers(wanted: bool = True) -> Any:
            return torch.empty(shape, dtype=torch.int64, device=device) if wanted else None

        return TableSet(
            floats(), floats(full), floats(), integers(),
            floats(full), floats(full), integers(full), integers(full),
            floats(softplus), floats(softplus),
        )  # fmt: skip

    def light(self) -> TableSet:
        """Log-sum-exp, total and count alone (and the softplus sums, where there are any)."""
        return self._replace(
            neg_lse=None, highest=None, lowest=None, highest_at=None, lowest_at=None
        )

    def of(self, view: int, start: int = 0, stop: int | None = None) -> TableSet:
        """The rows `start..stop` of a view, of tables `[V, N, L + 1]`."""
        return TableSet(*(None if t is None else t[view, start:stop] for t in self))  # type: ignore[arg-type]


class TableGradientSet(NamedTuple):
    """Gradients of the tables; None is zero."""

    lse: Tensor | None = None
    neg_lse: Tensor | None = None
    total: Tensor | None = None
    highest: Tensor | None = None
    lowest: Tensor | None = None
    softplus: Tensor | None = None

    def of(self, view: int, start: int = 0, stop: int | None = None) -> TableGradientSet:
        """The rows `start..stop` of a view, of gradients `[V, N, L + 1]`."""
        return TableGradientSet(*(None if t is None else t[view, start:stop] for t in self))


class Needs(NamedTuple):
    """Which gradients are wanted."""

    queries: bool
    candidates: bool
    scale: bool
    factors: bool = False


class Gradients(NamedTuple):
    """Accumulation dtype; without elements where not needed."""

    queries: Tensor  # [N, D]
    candidates: Tensor  # [M, D]
    scale: Tensor  # 0-d
    factors: Tensor  # [F, L + 1]


class SigmoidResult(NamedTuple):
    """Of the sigmoid loss and the gradients of the sum of its rows."""

    losses: Tensor  # [N]
    gradients: Gradients
    d_bias: Tensor  # 0-d


COLUMN_TABLES = TableSet._fields[:8]  # all but the softplus sums
