"""What one loss step works on: the same for every backend."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .distributed.shards import Arrival, Shards
from .levels import LevelSource
from .validation import accumulation_dtype

Product = Literal["auto", "fused", "vendor"]


class Batch(NamedTuple):
    """The inputs, and the views of their similarities.

    A view reads the similarity of the first `dims[p]` features as logits with the factors f of the
    levels, `z_ij = scale * factors[f, y_ij] * s_ij`. Views are numbered `p * F + f`; every view has
    its own tables. With a `circle` margin m the logits are those of the circle loss instead
    (`reference.logits`).
    """

    queries: Tensor  # [N, D]
    candidates: Tensor  # [M, D]
    scale: Tensor  # 0-d, accumulation dtype
    levels: LevelSource
    normalize: bool = True
    factors: Tensor | None = None  # [F, L + 1], accumulation dtype; None: 1
    memory: Tensor | None = None  # [Q, D]: further candidates, without gradient
    dims: tuple[int, ...] = ()  # ascending; (): all features
    circle: float | None = None
    workspace_mb: float = 0.0  # 0: the default
    product: Product = "auto"
    skip_below: float = 0.0  # of the largest gradient of a logit: tiles below are left out
    shards: Shards | None = None  # the other ranks' parts; None: there are none
    arrival: Arrival | None = None  # candidates of other ranks that are on their way
    d_candidates: Tensor | None = None  # [M, D]: where this gradient goes; None: new memory

    @property
    def dtype(self) -> torch.dtype:
        return accumulation_dtype(self.queries.dtype)

    @property
    def prefixes(self) -> tuple[int, ...]:
        return self.dims or (self.queries.shape[1],)

    @property
    def channels(self) -> int:
        """F."""
        return 1 if self.factors is None else self.factors.shape[0]

    @property
    def views(self) -> int:
        """V."""
        return len(self.prefixes) * self.channels

    @property
    def num_columns(self) -> int:
        """Candidates and memory."""
        extra = 0 if self.memory is None else self.memory.shape[0]
        return self.candidates.shape[0] + extra

    def all_candidates(self, dtype: torch.dtype) -> Tensor:
        """Candidates and memory, `[M + Q, D]`; waits for those that are on their way."""
        if self.arrival is not None:
            self.arrival.wait()
        if self.memory is None:
            return self.candidates.to(dtype)
        return torch.cat([self.candidates.to(dtype), self.memory.to(dtype)])
