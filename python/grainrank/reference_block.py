"""The similarities of reference embeddings, row block by row block."""

from __future__ import annotations

import torch
from torch import Tensor


class ReferenceBlock:
    """The similarities `[R, M]` of reference embeddings for a row block; the memory is reused."""

    def __init__(self, queries: Tensor, candidates: Tensor) -> None:
        self._queries, self._candidates = queries, candidates
        self._values = queries.new_empty(0, candidates.shape[0])
        self._rows = (0, 0)

    def at(self, start: int, stop: int) -> Tensor:
        if self._rows != (start, stop):
            if self._values.shape[0] < stop - start:
                self._values = self._queries.new_empty(stop - start, self._candidates.shape[0])
            out = self._values[: stop - start]
            torch.mm(self._queries[start:stop], self._candidates.t(), out=out)
            self._rows = start, stop
        return self._values[: stop - start]
