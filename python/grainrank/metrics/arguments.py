"""Checks of what the metrics take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ranks import PositiveRanks
from ..validation import check_numbers


def highest_level(ranks: PositiveRanks) -> int:
    """L, of exact ranks."""
    if not isinstance(ranks, PositiveRanks):
        raise TypeError(
            f"ranks must be PositiveRanks, got {type(ranks).__name__}; "
            f"make them with grainrank.ranks.positive_ranks(queries, candidates, levels)"
        )
    if ranks.above.dtype.is_floating_point:
        raise TypeError(
            f"ranks must be exact, with int64 counts in above, got smooth ones of "
            f"{ranks.above.dtype}; call positive_ranks without temperature"
        )
    return ranks.count.shape[1] - 1


def check_cutoff(k: object) -> None:
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an int, got {type(k).__name__}; it counts candidates")
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}; it counts the best candidates")


def check_level(name: str, level: object, max_level: int) -> None:
    """A level of positives, 1..L."""
    if isinstance(level, bool) or not isinstance(level, int):
        raise TypeError(f"{name} must be an int, got {type(level).__name__}")
    if not 1 <= level <= max_level:
        raise ValueError(
            f"{name} must lie in 1..L = 1..{max_level}, the levels of positives, got {level}"
        )


def level_table(
    name: str, values: Sequence[float] | Tensor, max_level: int, device: torch.device
) -> Tensor:
    """A number of each level, float64 `[L + 1]`; 0 for level 0."""
    numbers = check_numbers(name, values.tolist() if isinstance(values, Tensor) else values)
    if len(numbers) != max_level + 1:
        raise ValueError(
            f"{name} must hold L + 1 = {max_level + 1} numbers, one for each level 0..L, "
            f"got {len(numbers)}"
        )
    if numbers[0] != 0:
        raise ValueError(
            f"{name} must be 0 for level 0, got {numbers[0].item():g}: only the positives are "
            f"looked at; subtract it from all, or make level 0 a level of its own"
        )
    return numbers.to(device)
