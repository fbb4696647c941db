"""Row blocks of embeddings that are read some rows at a time: from tensors, arrays and files."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..operands import NORM_EPS
from ..products import product_
from ..row_blocks import Block, block_rows
from ..top_k.rows import Rows
from ..validation import check_finite
from .passes import LEVEL_BYTES, RankPasses

_CHUNK = 32 * 2**20  # bytes of candidates that are read and converted at a time


class StreamedBlocks:
    """Iterates over the row blocks; the next one uses the workspace again.

    Candidates are read anew for every block: the larger the workspace, the fewer times.
    `references`: similarities of a reference that the levels of a pair need.
    """

    def __init__(
        self,
        queries: Rows,
        candidates: Rows,
        passes: RankPasses,
        like: Tensor,
        normalize: bool,
        references: int,
        workspace_mb: float,
    ) -> None:
        self._queries, self._candidates, self._passes = queries, candidates, passes
        self._like, self._normalize = like, normalize
        self._references, self._workspace_mb = references, workspace_mb
        self._inverse: Tensor | None = None  # [M], of the candidates' norms

    def __iter__(self) -> Iterator[Block]:
        n, m, like = len(self._queries), len(self._candidates), self._like
        dtype = self._passes.empty(0).dtype
        pair = dtype.itemsize + LEVEL_BYTES + 4 * self._references
        rows = block_rows(n, m * pair, self._workspace_mb)
        apart = -(-m // self._passes.row_multiple) * self._passes.row_multiple
        none = like.new_empty(0, self._queries.features)
        with self._passes.workspace(rows, apart) as memory:
            for start in range(0, n, rows):
                stop = min(start + rows, n)
                q = self._read("queries", self._queries, start, stop)
                row_factors = self._inverse_norms("queries", q)
                s = memory[: stop - start, :m]
                self._products(q, s)
                of_columns = self._inverse if self._normalize else None
                of_rows = row_factors if self._normalize else None
                yield Block(s, None, q, none, start, 0, of_rows, of_columns, None)

    def _products(self, q: Tensor, s: Tensor) -> None:
        """Fills the similarities `[R, M]`."""
        first = self._inverse is None
        inverse = self._passes.empty(s.shape[1])
        for start, stop in self._chunks():
            c = self._read("candidates", self._candidates, start, stop)
            if first:
                inverse[start:stop] = self._inverse_norms("candidates", c)
            product_(s[:, start:stop], q, c.t())
        if first:
            self._inverse = inverse

    def _chunks(self) -> list[tuple[int, int]]:
        values, m = self._candidates.values, len(self._candidates)
        size = max(1, _CHUNK // (self._candidates.features * self._like.element_size()))
        if isinstance(values, Tensor) and self._as_they_are(values):
            size = m
        return [(a, min(a + size, m)) for a in range(0, m, size)]

    def _as_they_are(self, values: Tensor) -> bool:
        like = self._like
        return (values.dtype, values.device, values.stride(1)) == (like.dtype, like.device, 1)

    def _read(self, name: str, rows: Rows, start: int, stop: int) -> Tensor:
        part = rows.read(start, stop, self._like, unit=False)
        return part if part.stride(1) == 1 else part.contiguous()

    def _inverse_norms(self, name: str, x: Tensor) -> Tensor:
        """`[R]`; a NaN would stand above everything."""
        norms = self._passes.empty(1, x.shape[0])
        self._passes.norms(x, (x.shape[1],), norms, None)
        if not bool(torch.isfinite(norms).all()):
            check_finite(name, x)
        return norms[0].clamp(min=NORM_EPS).reciprocal_()
