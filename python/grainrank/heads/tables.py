"""What the heads read, and what several of them need."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class Tables(Protocol):
    """The tables `[N, L + 1]` of `LevelStatistics`; an empty level holds -1e30, or 0 in `total`."""

    @property
    def lse(self) -> Tensor: ...
    @property
    def neg_lse(self) -> Tensor: ...
    @property
    def total(self) -> Tensor: ...
    @property
    def count(self) -> Any: ...  # a NamedTuple has a method of this name


class SoftplusTables(Tables, Protocol):
    """Tables with the softplus sums of the positives."""

    @property
    def softplus(self) -> Any: ...  # None where nobody asked for them


T = TypeVar("T", bound=NamedTuple)


def softplus(x: Tensor) -> Tensor:
    """`log(1 + exp(x))`; torch's own is cut off at 20, with a gradient of exactly 1 from there."""
    return -logsigmoid(-x)


def lse_of_positives(t: Tables) -> Tensor:
    """Log-sum-exp over the levels of 1 and more, `[N]`."""
    return torch.logsumexp(t.lse[:, 1:], dim=1)


def has_positive(t: Tables) -> Tensor:
    """Rows with a pair of level 1 or more, bool `[N]`."""
    return t.count[:, 1:].sum(dim=1) > 0  # type: ignore[no-any-return]


def where_positive(t: Tables, loss: Tensor) -> Tensor:
    """The loss, and 0 for rows without positives."""
    return torch.where(has_positive(t), loss, 0.0)


def merge(*tables: T) -> T:
    """The tables of several blocks of columns as if they were one matrix.

    Args:
        tables: `LevelStatistics` of the same rows and levels, all full or all light.

    Returns:
        `LevelStatistics`; without `highest_at` and `lowest_at`, which have no columns to name, and
        without softplus sums.

    Example:
        >>> from grainrank import level_statistics, GrainKeys
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> keys = torch.arange(4)[:, None] % 2
        >>> whole = level_statistics(q, c, GrainKeys(keys, keys), temperature=0.1)
        >>> left = level_statistics(q, c[:1], GrainKeys(keys, keys[:1]), temperature=0.1)
        >>> right = level_statistics(q, c[1:], GrainKeys(keys, keys[1:]), temperature=0.1)
        >>> torch.allclose(merge(left, right).lse, whole.lse)
        True
    """
    columns = {name: [getattr(t, name) for t in tables] for name in tables[0]._fields}

    def over(name: str, reduce: Any) -> Tensor | None:
        values = columns[name]
        return None if values[0] is None else reduce(torch.stack(values), dim=0)

    return tables[0]._replace(
        lse=over("lse", torch.logsumexp),
        neg_lse=over("neg_lse", torch.logsumexp),
        total=over("total", torch.sum),
        count=over("count", torch.sum),
        highest=over("highest", torch.amax),
        lowest=over("lowest", torch.amin),
        highest_at=None,
        lowest_at=None,
        softplus=None,
    )
