"""Level sources as the C++ passes read them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _native  # type: ignore[attr-defined]
from .level_pointers import LevelPointers
from .levels import DenseLevels, GrainKeys, check_level_range

_INT32 = torch.iinfo(torch.int32)


class CpuLevels(LevelPointers):
    """The level data of one batch, and the arguments for its row blocks."""

    def at(self, start: int, stop: int) -> Any:
        """For the rows `start..stop`; valid until the next call."""
        leaves = [
            _native.LevelLeaf(**leaf, first_row=start) for leaf in self.leaves_at(start, stop)
        ]
        return _native.LevelArgs(self.max_level, leaves, self.exclusions)

    def without_references(self) -> Any:
        """For all rows; good for finding the pairs of level -1, which bands have none of."""
        leaves = [_native.LevelLeaf(**{**leaf, "similarities": 0}) for leaf in self._leaves]
        return _native.LevelArgs(self.max_level, leaves, self.exclusions)

    def compared(self, queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        return narrow(queries, candidates)

    def keys(self, source: GrainKeys) -> dict[str, Any]:
        query_keys, candidate_keys = self.compared(*source.tensors)
        keys = {
            "query_keys": self.hold(query_keys),
            "candidate_keys": self.hold(candidate_keys.t()),
        }
        if source.match == "prefix":
            keys |= self._by_first_key(query_keys, candidate_keys)
        return keys

    def _by_first_key(self, query_keys: Tensor, candidate_keys: Tensor) -> dict[str, int]:
        """The candidates in the order of their first key, and where those of a query lie in it."""
        keys, order = candidate_keys[:, 0].sort(stable=True)
        of_rows = query_keys[:, 0].contiguous()
        first, last = (torch.searchsorted(keys, of_rows, side=side) for side in ("left", "right"))
        last = torch.where(of_rows < 0, first, last)  # unknown: equals nothing
        places = {"order": order, "first": first, "last": last}
        finer_keys = candidate_keys[order, 1:].t()
        return {
            **{name: self.hold(place.to(torch.int32)) for name, place in places.items()},
            "finer_keys": self.hold(finer_keys),
        }

    def dense(self, source: DenseLevels) -> Tensor:
        """Another dtype is checked first: 256 would wrap to 0. The passes check int8."""
        (levels,) = source.tensors
        if levels.dtype != torch.int8:
            check_level_range(levels, source.max_level)
        return levels.to(torch.int8)

    def kind(self, name: str) -> Any:
        return getattr(_native.LevelKind, name)

    def exclusion(self, queries: Tensor, candidates: Tensor) -> Any:
        return _native.LevelExclusion(self.hold(queries), self.hold(candidates))


def narrow(queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Both as int32 with equality kept; negative stays negative.

    Keys beyond 32 bits (hashes, ids) are numbered anew.
    """
    both = torch.cat([queries.reshape(-1), candidates.reshape(-1)])
    if both.dtype == torch.int64:
        low, high = both.aminmax()
        if int(low) < _INT32.min or int(high) > _INT32.max:
            known = both >= 0
            _, number = torch.unique(both, return_inverse=True)
            # Ids are compared as they are, so negative ones stay distinct: -1, -2, ...
            both = torch.where(known, number, -1 - number)
    both = both.to(torch.int32)
    return both[: queries.numel()].view(queries.shape), both[queries.numel() :].view(
        candidates.shape
    )
