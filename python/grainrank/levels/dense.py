"""Levels given as a matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..validation import MAX_LEVEL, check_device, check_integers
from .base import LevelSource, check_level_range


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

    def __init__(self, levels: Tensor, max_level: int | None = None) -> None:
        tensor = check_integers("levels", levels, "[N, M]", 2)
        low = high = 0
        if max_level is None and tensor.numel() > 0:
            low, high = (int(x) for x in tensor.aminmax())
        self.max_level = level_limit(max_level, low, high)
        self.kind = f"dense:{self.max_level}"
        self.tensors = (tensor,)

    @property
    def num_candidates(self) -> int:
        """M."""
        return self.tensors[0].shape[1]

    def check_own(self, num_queries: int, num_candidates: int, device: torch.device) -> None:
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

    def transposed(self) -> LevelSource:
        return DenseLevels(self.tensors[0].t(), self.max_level)

    def with_columns(
        self, column: Callable[[Tensor], Tensor], matrix: Callable[[LevelSource], LevelSource]
    ) -> LevelSource:
        return matrix(self)


def level_limit(max_level: int | None, low: int, high: int) -> int:
    """L, given or read from the data's lowest and highest level."""
    if max_level is None:
        if low < -1 or high > MAX_LEVEL:
            raise ValueError(
                f"levels must lie in -1..{MAX_LEVEL}, got {low}..{high}; "
                f"merge grades into at most {MAX_LEVEL} levels"
            )
        return max(high, 1)
    if isinstance(max_level, bool) or not isinstance(max_level, int):
        raise TypeError(f"max_level must be an int or None, got {type(max_level).__name__}")
    if not 1 <= max_level <= MAX_LEVEL:
        raise ValueError(f"max_level must lie in 1..{MAX_LEVEL}, got {max_level}")
    return max_level
