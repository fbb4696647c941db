"""Smooth steps, and their slopes.

    sigmoid:      h(x) = sigmoid(x / t)
    upper bound:  of candidates of a lower level than the positive's
                  h(x) = sigmoid(x / t)                       x <= 0
                         sigmoid(x / t) + 1/2          0 < x <= delta
                         rho (x - delta) + offset       x > delta
                  and of all others the step, 1 from 0 on, without a gradient

The upper bound is ROADMAP's (Ramzi et al., NeurIPS 2021, eq. 6), which HAPPIER uses by level (Ramzi
et al., ECCV 2022, section 3.3); the numbers are those of its public code.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Surrogate(Protocol):
    """`below`: where the other candidate's level is lower than the positive's."""

    def value(self, x: Tensor, below: Tensor) -> Tensor: ...

    def slope(self, x: Tensor, below: Tensor) -> Tensor: ...

    @property
    def steepest(self) -> float:
        """The largest slope."""

    @property
    def upper_bound(self) -> bool:
        """Whether it is the upper bound, else the sigmoid."""

    def numbers(self) -> dict[str, float]:
        """Its parameters, by name."""


class Sigmoid(NamedTuple):
    temperature: float

    @property
    def steepest(self) -> float:
        return 1 / (4 * self.temperature)

    @property
    def upper_bound(self) -> bool:
        return False

    def numbers(self) -> dict[str, float]:
        return self._asdict()

    def value(self, x: Tensor, below: Tensor) -> Tensor:
        return torch.sigmoid(x / self.temperature)

    def slope(self, x: Tensor, below: Tensor) -> Tensor:
        p = torch.sigmoid(x / self.temperature)
        return p * (1 - p) / self.temperature


class UpperBound(NamedTuple):
    temperature: float
    rho: float = 100.0
    delta: float = 0.05
    offset: float = 1.44

    @property
    def steepest(self) -> float:
        return max(1 / (4 * self.temperature), self.rho)

    @property
    def upper_bound(self) -> bool:
        return True

    def numbers(self) -> dict[str, float]:
        return self._asdict()

    def value(self, x: Tensor, below: Tensor) -> Tensor:
        p = torch.sigmoid(x / self.temperature)
        bound = torch.where(x > 0, p + 0.5, p)
        bound = torch.where(x > self.delta, self.rho * (x - self.delta) + self.offset, bound)
        return torch.where(below, bound, (x >= 0).to(x.dtype))

    def slope(self, x: Tensor, below: Tensor) -> Tensor:
        p = torch.sigmoid(x / self.temperature)
        slope = torch.where(x > self.delta, self.rho, p * (1 - p) / self.temperature)
        return torch.where(below, slope, 0.0)


def surrogate_of(name: str, temperature: float) -> Surrogate:
    return Sigmoid(temperature) if name == "sigmoid" else UpperBound(temperature)
