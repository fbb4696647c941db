"""The passes over ranks on the CPU: the C++ of csrc/ behind the contract of `ranks.passes`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _native  # type: ignore[attr-defined]
from .cpu import CpuPasses
from .levels import level_range_error
from .ranks.blocks import offsets
from .ranks.passes import Positives, SmoothSums
from .ranks.streamed import Part
from .ranks.surrogates import Surrogate
from .row_blocks import Block

_BUCKETS = 8  # for each positive of a row: few candidates have to be compared
_FEWEST_BUCKETS, _MOST_BUCKETS = 64, 2**14


class _Chunk(NamedTuple):
    """Some candidates, and the queries that are compared with them."""

    queries: Part
    candidates: Part
    first_row: int
    first_column: int
    columns: int  # of the batch
    ignored: bool
    packed: Tensor  # scratch


class CpuRankPasses(CpuPasses):
    """The passes for one batch."""

    multiplies_bf16 = False  # ranks compare similarities: rows are widened, and have length 1

    def block_levels(self, block: Block) -> tuple[Tensor, Tensor]:
        rows, columns = block.shape
        levels = torch.empty(rows, columns, dtype=torch.int8)
        count = torch.empty(rows, self._levels.max_level + 1, dtype=torch.int64)
        self._run(_native.block_levels, block, out=levels.data_ptr(), count=count.data_ptr())
        return levels, count

    def positives(self, block: Block, levels: Tensor, count: Tensor) -> Positives:
        starts = offsets(count[:, 1:].sum(dim=1))
        size = int(starts[-1])
        row, column, level = torch.empty(3, size, dtype=torch.int64).unbind()
        similarity = self.empty(size)
        out = self._make("Positives")(
            levels=levels.data_ptr(),
            starts=starts.data_ptr(),
            row=row.data_ptr(),
            column=column.data_ptr(),
            level=level.data_ptr(),
            similarity=0 if block.similarities is None else similarity.data_ptr(),
        )
        _native.positives(self._set, self._block(block), out)
        return Positives(starts, row, column, level, similarity)

    def pair_similarities(
        self, queries: Part, candidates: Part, row: Tensor, column: Tensor
    ) -> Tensor:
        similarity = self.empty(len(row))
        _native.pair_similarities(
            self._set,
            self._rows(queries),
            self._rows(candidates),
            features=queries.values.shape[1],
            pairs=len(row),
            row=row.data_ptr(),
            column=column.data_ptr(),
            similarity=similarity.data_ptr(),
            num_threads=torch.get_num_threads(),
        )
        return similarity

    def tile_ranks(
        self,
        queries: Part,
        positives: Positives,
        ties: str,
        start: int,
        columns: int,
        ignored: bool,
        candidates: Iterable[tuple[int, Part]],
    ) -> Tensor:
        exact, held = self._exact(positives, ties)
        _native.sort_positives(self._set, exact)
        packed = self.empty(0)
        for first, part in candidates:
            needed = self._packed_size(part)
            if packed.numel() < needed:
                packed = self.empty(needed)
            chunk = _Chunk(queries, part, start, first, columns, ignored, packed)
            self._over_chunk(_native.count_chunk, exact, chunk)
        _native.finish_ranks(self._set, exact)
        return held["above"]

    def row_ranks(
        self,
        queries: Part,
        positives: Positives,
        ties: str,
        start: int,
        ignored: bool,
        candidates: Part,
    ) -> Tensor:
        exact, held = self._exact(positives, ties)
        packed = self.empty(self._packed_size(candidates))
        chunk = _Chunk(queries, candidates, start, 0, len(candidates.values), ignored, packed)
        self._over_chunk(_native.rank_rows, exact, chunk)
        return held["above"]

    def _exact(self, positives: Positives, ties: str) -> tuple[Any, dict[str, Tensor]]:
        """The arguments, and the memory that they stand for."""
        lengths, size = positives.starts.diff(), len(positives.column)
        buckets = (lengths * _BUCKETS).clamp(_FEWEST_BUCKETS, _MOST_BUCKETS)
        bucket_starts = offsets(torch.where(lengths > 0, buckets + _native.NOT_COUNTED, 0))
        held = {
            **positives._asdict(),
            "order": torch.empty(size, dtype=torch.int64),
            "sorted": self.empty(size, 2),
            "bucket_starts": bucket_starts,
            "buckets": torch.empty(int(bucket_starts[-1]), dtype=torch.int16),
            "above": self._counts(positives),
        }
        del held["row"]
        exact = self._make("Exact")(
            ties=getattr(_native.Ties, ties.upper()),
            max_level=self._levels.max_level,
            rows=len(lengths),
            num_threads=torch.get_num_threads(),
            **{name: tensor.data_ptr() for name, tensor in held.items()},
        )
        return exact, held

    def _packed_size(self, part: Part) -> int:
        rows, features = part.values.shape
        return (rows + int(_native.PACKED_PADDING)) * features

    def _over_chunk(self, function: Any, exact: Any, chunk: _Chunk) -> None:
        status = function(
            self._set,
            exact,
            self._levels.without_references(),
            self._rows(chunk.queries),
            self._rows(chunk.candidates),
            features=chunk.queries.values.shape[1],
            first_row=chunk.first_row,
            first_column=chunk.first_column,
            all_columns=chunk.columns,
            some_ignored=chunk.ignored,
            packed=chunk.packed.data_ptr(),
        )
        if status != 0:
            raise level_range_error(self._levels.max_level)

    def smooth_ranks(
        self, block: Block, levels: Tensor, positives: Positives, step: Surrogate
    ) -> SmoothSums:
        at_least = self._counts(positives)
        above, slope = torch.empty(2, *at_least.shape, dtype=torch.float64).unbind()
        out = self._make("Smooth")(
            step=self._step(step),
            above=above.data_ptr(),
            slope=slope.data_ptr(),
            at_least=at_least.data_ptr(),
        )
        _native.smooth_ranks(self._set, self._block(block), self._ranks(levels, positives), out)
        return SmoothSums(above.to(self._dtype), slope, at_least)

    def rank_gradient_(
        self,
        block: Block,
        levels: Tensor,
        positives: Positives,
        step: Surrogate,
        d_above: Tensor,
        own: Tensor,
    ) -> None:
        out = self._make("RankGradient")(
            step=self._step(step), d_above=d_above.data_ptr(), own=own.data_ptr()
        )
        _native.rank_gradient(self._set, self._block(block), self._ranks(levels, positives), out)

    def _counts(self, positives: Positives) -> Tensor:
        """Memory for int64 `[P, L + 1]`."""
        return torch.empty(len(positives.column), self._levels.max_level + 1, dtype=torch.int64)

    def _rows(self, part: Part) -> Any:
        values, inverse = part
        return self._make("EmbeddingRows")(
            values=values.data_ptr(),
            stride=values.stride(0),
            rows=len(values),
            factors=0 if inverse is None else inverse.data_ptr(),
        )

    def _step(self, step: Surrogate) -> Any:
        return self._make("Step")(upper_bound=step.upper_bound, **step.numbers())

    def _ranks(self, levels: Tensor, positives: Positives) -> Any:
        return self._make("Ranks")(
            levels=levels.data_ptr(),
            max_level=self._levels.max_level,
            starts=positives.starts.data_ptr(),
            column=positives.column.data_ptr(),
            level=positives.level.data_ptr(),
            similarity=positives.similarity.data_ptr(),
        )
