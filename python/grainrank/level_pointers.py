"""Level sources as native code reads them: a list of leaves, and of exclusions, by address."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .levels import (
    DenseLevels,
    Diagonal,
    GrainKeys,
    LevelSource,
    SimilarityBands,
    SparseLevels,
    leaves_of,
)
from .reference_block import ReferenceBlock


class LevelPointers:
    """The level data of one batch; a backend says how it compares keys and reads dense levels."""

    def __init__(self, source: LevelSource) -> None:
        self.max_level = source.max_level
        self._held: list[Tensor] = []
        self._leaves: list[dict[str, Any]] = []
        self._bands: list[tuple[dict[str, Any], ReferenceBlock]] = []
        leaves, exclusions = leaves_of(source)
        for member in leaves:
            leaf = self._leaf(member)
            leaf["max_level"] = member.max_level
            self._leaves.append(leaf)
        self.exclusions = [self.exclusion(*self.compared(*ids)) for ids in exclusions]

    def leaves_at(self, start: int, stop: int) -> list[dict[str, Any]]:
        """For the rows `start..stop`; valid until the next call."""
        for leaf, reference in self._bands:
            leaf["similarities"] = self.address(reference.at(start, stop))
        return self._leaves

    def compared(self, queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Keys or ids in the dtype that the backend compares them in."""
        raise NotImplementedError

    def keys(self, source: GrainKeys) -> dict[str, Any]:
        """Where the keys are, and how they are laid out."""
        raise NotImplementedError

    def dense(self, source: DenseLevels) -> Tensor:
        """The levels `[N, M]`, int8 and in range."""
        raise NotImplementedError

    def kind(self, name: str) -> Any:
        """What the backend calls a kind of source."""
        raise NotImplementedError

    def exclusion(self, queries: Tensor, candidates: Tensor) -> Any:
        """What the backend takes for ids that were compared()."""
        raise NotImplementedError

    def address(self, tensor: Tensor) -> int:
        return tensor.data_ptr()

    def hold(self, tensor: Tensor) -> int:
        """The address of memory that lives as long as this object."""
        self._held.append(tensor.contiguous())
        return self.address(self._held[-1])

    def _leaf(self, source: LevelSource) -> dict[str, Any]:
        if isinstance(source, Diagonal):
            return {"kind": self.kind("DIAGONAL")}
        if isinstance(source, GrainKeys):
            kind = self.kind("KEYS_COUNT" if source.match == "count" else "KEYS_PREFIX")
            return {"kind": kind, "num_keys": source.max_level, **self.keys(source)}
        if isinstance(source, DenseLevels):
            return {"kind": self.kind("DENSE"), "dense": self.hold(self.dense(source))}
        if isinstance(source, SparseLevels):
            ends, indices, levels, *_ = source.tensors
            return {
                "kind": self.kind("SPARSE"),
                "ends": self.hold(ends),
                "indices": self.hold(indices.to(torch.int32)),
                "levels": self.hold(levels),
            }
        assert isinstance(source, SimilarityBands)
        return self._bands_leaf(source)

    def _bands_leaf(self, source: SimilarityBands) -> dict[str, Any]:
        queries, candidates, thresholds = source.tensors
        own = thresholds.shape[0] > 1  # a row (column) has its own
        by_column = own and source.side == "columns"
        leaf: dict[str, Any] = {
            "kind": self.kind("BANDS"),
            "thresholds": self.hold(thresholds.t() if by_column else thresholds),
            "threshold_stride": (
                thresholds.shape[0] if by_column else thresholds.shape[1] if own else 0
            ),
            "by_column": by_column,
        }
        self._bands.append((leaf, ReferenceBlock(queries, candidates)))
        return leaf
