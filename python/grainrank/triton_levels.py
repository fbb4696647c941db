"""Level sources as the Triton kernels read them: tuples of tensors, and their kinds."""

from __future__ import annotations

from typing import Any

import torch

from .gpu_levels import int8_levels, same_dtype
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


class TritonLevels:
    """The level data of one batch, and the arguments for its row blocks."""

    def __init__(self, source: LevelSource) -> None:
        self._kinds: list[str] = []
        self._largest: list[int] = []
        self._leaves: list[tuple[Any, ...]] = []
        self._bands: list[tuple[int, ReferenceBlock]] = []
        leaves, exclusions = leaves_of(source)
        self.exclusions = tuple(same_dtype(*ids) for ids in exclusions)
        for member in leaves:
            kind, leaf = self._leaf(member)
            self._kinds.append(kind)
            self._largest.append(member.max_level)
            self._leaves.append(leaf)
        self.kinds, self.largest = tuple(self._kinds), tuple(self._largest)

    def at(self, start: int, stop: int) -> tuple[tuple[Any, ...], ...]:
        """The sources for the rows `start..stop`; valid until the next call."""
        leaves = list(self._leaves)
        for n, reference in self._bands:
            leaves[n] = (reference.at(start, stop), *leaves[n])
        return tuple(leaves)

    def _leaf(self, source: LevelSource) -> tuple[str, tuple[Any, ...]]:
        if isinstance(source, Diagonal):
            return "diagonal", ()
        if isinstance(source, GrainKeys):
            queries, candidates = same_dtype(*source.tensors)
            return source.match, (queries.contiguous(), candidates.t().contiguous())
        if isinstance(source, DenseLevels):
            return "dense", (int8_levels(source),)
        if isinstance(source, SparseLevels):
            ends, indices, levels, *_ = source.tensors
            return "sparse", (ends, indices.to(torch.int32), levels)
        assert isinstance(source, SimilarityBands)
        queries, candidates, thresholds = source.tensors
        own = thresholds.shape[0] > 1  # a row (column) has its own
        self._bands.append((len(self._leaves), ReferenceBlock(queries, candidates)))
        kind = "bands_by_column" if own and source.side == "columns" else "bands"
        return kind, (thresholds.contiguous(), thresholds.shape[1] if own else 0)
