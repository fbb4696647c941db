"""Character n-grams, hashed into buckets: features of the encoder and of TF-IDF."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.icd10 import normalise

BUCKETS = 65_536
SIZES = (3, 4, 5)


@dataclass(frozen=True)
class Bags:
    """The n-grams of `n` texts, one text after the other.

    ids: bucket of each n-gram, int64 `[sum of lengths]`.
    offsets: where each text starts, and where the last one ends, int64 `[n + 1]`.
    """

    ids: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def select(self, rows: Tensor) -> Bags:
        """The bags of some rows, in their order."""
        lengths = (self.offsets[1:] - self.offsets[:-1])[rows]
        offsets = torch.zeros(len(rows) + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=offsets[1:])
        shift = torch.repeat_interleave(self.offsets[rows] - offsets[:-1], lengths)
        return Bags(self.ids[shift + torch.arange(len(shift))], offsets)

    def followed_by(self, other: Bags) -> Bags:
        """These bags, then the other ones."""
        offsets = torch.cat([self.offsets[:-1], other.offsets + self.offsets[-1]])
        return Bags(torch.cat([self.ids, other.ids]), offsets)


def hashed_ngrams(texts: Sequence[str]) -> Bags:
    """All 3- to 5-grams of the normalised texts, spaces at both ends included."""
    ids: list[int] = []
    offsets = [0]
    for text in texts:
        padded = f" {normalise(text)} ".encode("ascii")
        ids += [
            zlib.crc32(padded[start : start + size]) % BUCKETS
            for size in SIZES
            for start in range(len(padded) - size + 1)
        ]
        offsets.append(len(ids))
    return Bags(torch.tensor(ids, dtype=torch.int64), torch.tensor(offsets, dtype=torch.int64))
