"""Embeddings that are read some rows at a time: from tensors, arrays and files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..operands import NORM_EPS, RowPasses
from ..products import product_
from ..row_blocks import Block, block_rows
from ..top_k.rows import Rows
from ..validation import check_finite
from .passes import LEVEL_BYTES, BlockPasses


class Part(NamedTuple):
    """Some rows as the products take them."""

    values: Tensor  # [R, D], of stride 1 in a row
    inverse: Tensor | None  # [R], of their norms; None: the rows are not normalised


class StreamedRows:
    """Rows of embeddings, and their norms, which are found once.

    Raises:
        ValueError: a NaN or infinity, when it is read; a NaN would stand above everything.
    """

    def __init__(
        self, name: str, rows: Rows, passes: RowPasses, like: Tensor, normalize: bool
    ) -> None:
        self._name, self._rows, self._passes = name, rows, passes
        self._like, self._normalize = like, normalize
        self._inverse = passes.empty(len(rows))
        self._known = 0  # rows from the first one on whose norms are known

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def row_bytes(self) -> int:
        """Of a row as the products take it."""
        return self._rows.features * self._like.element_size()

    @property
    def in_place(self) -> bool:
        """Whether all rows can be read at once, where they are."""
        values = self._rows.values
        return isinstance(values, Tensor) and (
            (values.dtype, values.device, values.stride(1))
            == (self._like.dtype, self._like.device, 1)
        )

    def chunks(self, size: int) -> Iterator[tuple[int, int]]:
        """Where chunks of so many bytes begin and end, of a row at least."""
        rows = max(1, size // self.row_bytes)
        for start in range(0, len(self), rows):
            yield start, min(start + rows, len(self))

    def read(self, start: int, stop: int) -> Part:
        """Rows in order; the first time no row may be left out."""
        values = self._operand(self._rows.read(start, stop, self._like, unit=False))
        if stop > self._known:
            assert start <= self._known
            self._inverse[start:stop] = self._inverse_norms(values)
            self._known = stop
        return Part(values, self._inverse[start:stop] if self._normalize else None)

    def take(self, index: Tensor) -> Part:
        """The rows of int64 `[R]`, in that order."""
        values = self._operand(self._rows.take(index, self._like))
        return Part(values, self._inverse_norms(values) if self._normalize else None)

    def _operand(self, values: Tensor) -> Tensor:
        return values if values.stride(1) == 1 else values.contiguous()

    def _inverse_norms(self, x: Tensor) -> Tensor:
        """`[R]`."""
        norms = self._passes.empty(1, x.shape[0])
        self._passes.norms(x, (x.shape[1],), norms, None)
        if not bool(torch.isfinite(norms).all()):
            check_finite(self._name, x)
        return norms[0].clamp(min=NORM_EPS).reciprocal_()


_CHUNK = 32 * 2**20  # bytes of candidates that are read and converted at a time


class StreamedBlocks:
    """Iterates over row blocks of similarities; the next one uses the workspace again.

    Candidates are read anew for every block: the larger the workspace, the fewer times.
    `references`: similarities of a reference that the levels of a pair need.
    """

    def __init__(
        self,
        queries: StreamedRows,
        candidates: StreamedRows,
        passes: BlockPasses,
        references: int,
        workspace_mb: float,
    ) -> None:
        self._queries, self._candidates, self._passes = queries, candidates, passes
        self._references, self._workspace_mb = references, workspace_mb

    def __iter__(self) -> Iterator[Block]:
        n, m = len(self._queries), len(self._candidates)
        dtype = self._passes.empty(0).dtype
        pair = dtype.itemsize + LEVEL_BYTES + 4 * self._references
        rows = block_rows(n, m * pair, self._workspace_mb)
        apart = -(-m // self._passes.row_multiple) * self._passes.row_multiple
        with self._passes.workspace(rows, apart) as memory:
            for start in range(0, n, rows):
                stop = min(start + rows, n)
                q = self._queries.read(start, stop)
                s = memory[: stop - start, :m]
                inverse = self._products(q.values, s)
                none = q.values[:0]
                yield Block(s, None, q.values, none, start, 0, q.inverse, inverse, None)

    def _products(self, q: Tensor, s: Tensor) -> Tensor | None:
        """Fills the similarities `[R, M]`; the inverse norms `[M]` of the candidates."""
        c = self._candidates
        if c.in_place:
            part = c.read(0, len(c))
            product_(s, q, part.values.t())
            return part.inverse
        inverse = []
        for start, stop in c.chunks(_CHUNK):
            part = c.read(start, stop)
            product_(s[:, start:stop], q, part.values.t())
            inverse.append(part.inverse)
        return None if inverse[0] is None else torch.cat(inverse)  # type: ignore[arg-type]
