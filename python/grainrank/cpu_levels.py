"""Level sources as the C++ passes read them: a list of leaves, and of exclusions.

`-1` wins over every level, so that `exclude` anywhere in a composition is `exclude` of all of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _native  # type: ignore[attr-defined]
from .levels import (
    Ceiled,
    DenseLevels,
    Diagonal,
    Excluded,
    GrainKeys,
    LevelSource,
    SimilarityBands,
    SparseLevels,
    Union,
    check_level_range,
)
from .reference_block import ReferenceBlock

_INT32 = torch.iinfo(torch.int32)
_KINDS = _native.LevelKind


class CpuLevels:
    """The level data of one batch, and the arguments for its row blocks."""

    def __init__(self, source: LevelSource) -> None:
        self._max_level = source.max_level
        self._held: list[Tensor] = []
        self._leaves: list[dict[str, Any]] = []
        self._bands: list[tuple[dict[str, Any], ReferenceBlock]] = []
        self._exclusions: list[Any] = []
        self._add(source.base if isinstance(source, Ceiled) else source)

    def at(self, start: int, stop: int) -> Any:
        """For the rows `start..stop`; valid until the next call."""
        for leaf, reference in self._bands:
            leaf["similarities"] = reference.at(start, stop).data_ptr()
            leaf["first_row"] = start
        leaves = [_native.LevelLeaf(**leaf) for leaf in self._leaves]
        return _native.LevelArgs(self._max_level, leaves, self._exclusions)

    def _hold(self, tensor: Tensor) -> int:
        """The address of memory that lives as long as this object."""
        self._held.append(tensor.contiguous())
        return self._held[-1].data_ptr()

    def _add(self, source: LevelSource) -> None:
        if isinstance(source, Excluded):
            self._add(source.base)
            ids = narrow(*source.ids)
            self._exclusions.append(_native.LevelExclusion(*map(self._hold, ids)))
        elif isinstance(source, Union):
            for member in source.members:
                self._add(member)
        else:
            self._leaves.append(self._leaf(source))
            self._leaves[-1]["max_level"] = source.max_level

    def _leaf(self, source: LevelSource) -> dict[str, Any]:
        if isinstance(source, Diagonal):
            return {"kind": _KINDS.DIAGONAL}
        if isinstance(source, GrainKeys):
            query_keys, candidate_keys = narrow(*source.tensors)
            return {
                "kind": _KINDS.KEYS_COUNT if source.match == "count" else _KINDS.KEYS_PREFIX,
                "num_keys": source.max_level,
                "query_keys": self._hold(query_keys),
                "candidate_keys": self._hold(candidate_keys.t()),
            }
        if isinstance(source, DenseLevels):
            return {"kind": _KINDS.DENSE, "dense": self._hold(_int8(source))}
        if isinstance(source, SparseLevels):
            ends, indices, levels, *_ = source.tensors
            return {
                "kind": _KINDS.SPARSE,
                "ends": self._hold(ends),
                "indices": self._hold(indices.to(torch.int32)),
                "levels": self._hold(levels),
            }
        assert isinstance(source, SimilarityBands)
        return self._bands_leaf(source)

    def _bands_leaf(self, source: SimilarityBands) -> dict[str, Any]:
        queries, candidates, thresholds = source.tensors
        own = thresholds.shape[0] > 1  # a row (column) has its own
        by_column = own and source.side == "columns"
        leaf: dict[str, Any] = {
            "kind": _KINDS.BANDS,
            "thresholds": self._hold(thresholds.t() if by_column else thresholds),
            "threshold_stride": (
                thresholds.shape[0] if by_column else thresholds.shape[1] if own else 0
            ),
            "by_column": by_column,
        }
        self._bands.append((leaf, ReferenceBlock(queries, candidates)))
        return leaf


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


def _int8(source: DenseLevels) -> Tensor:
    """`[N, M]`. Another dtype is checked first: 256 would wrap to 0."""
    (levels,) = source.tensors
    if levels.dtype != torch.int8:
        check_level_range(levels, source.max_level)
    return levels.to(torch.int8)
