"""TF-IDF of the encoder's own n-grams: what is reached without training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .text import BUCKETS, Bags

_CHUNK = 128


def tfidf_blocks(queries: Bags, candidates: Bags) -> Iterator[Tensor]:
    """Row blocks `[rows, M]` of the cosine of TF-IDF vectors; frequencies are the candidates'."""
    once = _counts(candidates).indices()[1]
    frequency = torch.bincount(once, minlength=BUCKETS)
    idf = torch.log((1 + len(candidates)) / (1 + frequency)) + 1  # [BUCKETS]
    matrix = _weighted(candidates, idf)  # [M, BUCKETS], sparse
    for rows in torch.arange(len(queries)).split(_CHUNK):
        block = _weighted(queries.select(rows), idf).T.to_dense()  # [BUCKETS, rows]
        yield torch.sparse.mm(matrix, block).T


def _counts(bags: Bags) -> Tensor:
    """How often each n-gram occurs in each text, sparse `[n, BUCKETS]`."""
    rows = torch.repeat_interleave(torch.arange(len(bags)), bags.offsets.diff())
    return torch.sparse_coo_tensor(
        torch.stack([rows, bags.ids]),
        torch.ones(len(rows)),
        (len(bags), BUCKETS),
        check_invariants=True,
    ).coalesce()


def _weighted(bags: Bags, idf: Tensor) -> Tensor:
    """Rows of length 1, sparse `[n, BUCKETS]`."""
    counts = _counts(bags)
    rows, columns = counts.indices()
    values = counts.values() * idf[columns]
    squares = torch.zeros(len(bags)).index_add_(0, rows, values.square())
    values = values / squares.sqrt().clamp_min(1e-12)[rows]
    return torch.sparse_coo_tensor(
        counts.indices(), values, counts.shape, is_coalesced=True, check_invariants=True
    )
