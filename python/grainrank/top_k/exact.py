"""The public function, and what it returns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..products import product_
from ..validation import accumulation_dtype, check_workspace
from .rows import Rows, as_ids, check_id_count, joined_rows, row_chunks
from .running import RUN, Excluded, RunningTopK

_WORKSPACE_MB = 128.0
_MAX_ROWS = 1024  # of a query block: more make the products no faster
_FIRST_COLUMNS = 1024  # candidates of the first block, where no bar is known
_FIRST_SHARE = 32  # and as many times k: later blocks have about 1 / _FIRST_SHARE above the bar
_PAIR_BYTES = 8  # of a score: itself, and its share of what is found
_ROW_BYTES = 3  # copies of an embedding: as read, converted, of length 1


class SearchResult(NamedTuple):
    """The best candidates of each query, best first."""

    scores: Tensor  #: `[N, k]`; -inf where there is no further candidate
    indices: Tensor  #: int64 `[N, k]`, rows of the candidates; -1 where there is none


@torch.no_grad()
def search(
    queries: object,
    candidates: object,
    k: int,
    *,
    normalize: bool = True,
    exclude: tuple[object, object] | None = None,
    workspace_mb: float | None = None,
    chunk_rows: int | None = None,
) -> SearchResult:
    """The k candidates of the highest score of each query, exactly.

        S = Q @ C.T                                            [N, M], never formed
        indices = S.argsort(dim=1, descending=True, stable=True)[:, :k]

    Equal scores are in the order of their indices, whatever the sizes of the blocks. The scores
    themselves are those of `torch.mm` on the blocks, whose last bit may depend on the shapes.

    Args:
        queries: embeddings `[N, D]`, float16, bfloat16, float32 or float64: a tensor, a numpy
            array or memmap, read some rows at a time; or an iterable of those, put together in
            memory. N may be 0.
        candidates: embeddings `[M, D]`, likewise; an iterable of chunks is read once and never
            held, rows numbered in its order. The first chunk's dtype is that of all. Products are
            in float64 where queries or candidates are float64, else in float32.
        k: how many, 1..M.
        normalize: cosine similarity (default); False: dot product.
        exclude: integer ids of the queries `[N]` and of the candidates `[M]`; a candidate with the
            id of the query is never returned, so `(ids, ids)` searches a corpus for itself.
        workspace_mb: bound of the memory of a block in MiB, beside the result and as much again
            for what waits to be sorted into it; None (default): 128 MiB.
        chunk_rows: candidates of a block; None (default): as many as fit the workspace.

    Returns:
        `SearchResult` on the device of queries, or of candidates where queries are an array; the
        scores in float32, or float64. Rows with fewer than k candidates that are not excluded end
        in score -inf and index -1.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: wrong shapes, k > M, or a score that is NaN.

    Example:
        >>> corpus = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 1.0]])
        >>> search(torch.tensor([[0.0, 1.0]]), corpus, 3).indices
        tensor([[1, 3, 2]])
        >>> ids = torch.arange(4)
        >>> search(corpus, corpus, 1, exclude=(ids, ids)).indices.T
        tensor([[2, 3, 0, 1]])
    """
    _check_count("k", k)
    if chunk_rows is not None:
        _check_count("chunk_rows", chunk_rows)
    workspace = (check_workspace(workspace_mb) or _WORKSPACE_MB) * 2**20
    q = joined_rows("queries", queries)
    first, chunks = row_chunks("candidates", candidates, q.features)
    if isinstance(candidates, (Tensor, np.ndarray)):
        _check_k(k, len(candidates))
    dtype = accumulation_dtype(
        q.dtype if first is None else torch.promote_types(q.dtype, first.dtype)
    )
    like = torch.empty(0, dtype=dtype, device=_device(queries, q, first))
    ids = _check_exclude(exclude, len(q))

    rows, columns = _block_sizes(len(q), q.features, dtype.itemsize, workspace, chunk_rows)
    blocks = [(a, min(a + rows, len(q))) for a in range(0, len(q), rows)]
    best = [RunningTopK(a, b - a, k, like, workspace / 4) for a, b in blocks]
    kept = [q.read(a, b, like, normalize) for a, b in blocks[:1]] if len(blocks) == 1 else None
    buffer, seen = like, 0
    for chunk, start, stop in _parts(chunks, columns, k):
        width = stop - start
        c = chunk.read(start, stop, like, normalize)  # [C, D]
        padded = math.ceil(width / RUN) * RUN
        if buffer.numel() < rows * padded:
            buffer = like.new_empty(rows * padded)
        for i, (a, b) in enumerate(blocks):
            part = q.read(a, b, like, normalize) if kept is None else kept[i]  # [R, D]
            scores = buffer[: (b - a) * padded].view(b - a, padded)
            product_(scores[:, :width], part, c.T)
            best[i].add(scores, width, seen, _excluded(ids, (a, b), (seen, seen + width), like))
        seen += width
    _check_k(k, seen)
    if ids is not None:
        check_id_count("exclude[1]", ids[1], seen, "candidates")
    return _result(best, k, like)


def _result(best: list[RunningTopK], k: int, like: Tensor) -> SearchResult:
    for block in best:
        block.settle()
    keys = torch.cat([like.new_empty(0, k), *(block.keys for block in best)])
    none = torch.empty(0, k, dtype=torch.int64, device=like.device)
    scores = keys.neg_().masked_fill_(keys.isnan(), -torch.inf)
    return SearchResult(scores, torch.cat([none, *(block.columns for block in best)]))


def _parts(chunks: Iterator[Rows], columns: int, k: int) -> Iterator[tuple[Rows, int, int]]:
    """Rows `start..stop` of each chunk, some at a time: a few at first, from which whole rows are
    selected, then more as the bar rises.
    """
    size = max(_FIRST_COLUMNS, _FIRST_SHARE * k)
    for chunk in chunks:
        start = 0
        while start < len(chunk):
            stop = min(start + min(size, columns), len(chunk))
            yield chunk, start, stop
            start, size = stop, min(4 * size, max(size, columns))


def _block_sizes(
    n: int, features: int, itemsize: int, workspace: float, chunk_rows: int | None
) -> tuple[int, int]:
    """Rows of a query block, and candidates of a block."""
    pair, row = _PAIR_BYTES * itemsize / 4, _ROW_BYTES * features * itemsize
    rows = min(n, _MAX_ROWS, int(math.sqrt(workspace / (2 * pair))))
    if chunk_rows is not None:
        rows = min(rows, int((workspace - chunk_rows * row) / (chunk_rows * pair)))
    rows = max(1, rows)
    columns = int((workspace - rows * row) / (rows * pair + row))
    if columns >= RUN:
        columns -= columns % RUN
    return rows, chunk_rows or max(1, columns)


def _excluded(
    ids: tuple[Tensor, Tensor] | None, rows: tuple[int, int], columns: tuple[int, int], like: Tensor
) -> Excluded | None:
    if ids is None:
        return None
    of_queries = ids[0][slice(*rows)].to(like.device, torch.int64)
    of_candidates = ids[1][slice(*columns)].to(like.device, torch.int64)
    check_id_count("exclude[1]", of_candidates, columns[1] - columns[0], "candidates")
    return Excluded(of_queries, of_candidates, *of_candidates.sort())


def _device(queries: object, q: Rows, candidates: Rows | None) -> torch.device:
    for values in (q.values, None if candidates is None else candidates.values):
        if isinstance(values, Tensor) and not (values is q.values and values is not queries):
            return values.device
    return torch.device("cpu")


def _check_exclude(exclude: tuple[object, object] | None, n: int) -> tuple[Tensor, Tensor] | None:
    if exclude is None:
        return None
    if not isinstance(exclude, (tuple, list)) or len(exclude) != 2:
        raise TypeError(
            f"exclude must be a pair (ids of queries, ids of candidates), "
            f"got {type(exclude).__name__}; pass (ids, ids) to search a corpus for itself"
        )
    ids = as_ids("exclude[0]", exclude[0]), as_ids("exclude[1]", exclude[1])
    check_id_count("exclude[0]", ids[0], n, "queries")
    return ids


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}; pass int({name})")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}; pass a positive number")


def _check_k(k: int, m: int) -> None:
    if k > m:
        raise ValueError(
            f"k must be at most M = {m}, the number of candidates, got {k}; "
            f"pass k=min(k, {m}), or more candidates"
        )
