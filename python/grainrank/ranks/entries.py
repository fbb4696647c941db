"""Single pairs of queries and candidates, listed row by row: entry e of row i is one of
`indptr[i]..indptr[i + 1]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .blocks import offsets


def rows_of_entries(indptr: Tensor, size: int) -> Tensor:
    """int64 `[E]`, the row of each of E = `size` entries."""
    rows = torch.arange(len(indptr) - 1, device=indptr.device)
    return rows.repeat_interleave(indptr.diff(), output_size=size)


def entry_gradients(
    queries: Tensor,
    candidates: Tensor,
    indptr: Tensor,
    indices: Tensor,
    d: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the queries and candidates, for that of the entries' products, `d` `[E]`.

    Of those that are needed. Nothing of `[E, D]` is stored.
    """
    d_queries = d_candidates = None
    if needs[0]:
        d_queries = _sums(candidates, indices, indptr, d)
    if needs[1]:
        by_column = indices.argsort(stable=True)
        row = rows_of_entries(indptr, len(indices))
        starts = offsets(torch.bincount(indices, minlength=len(candidates)))
        d_candidates = _sums(queries, row[by_column], starts, d[by_column])
    return d_queries, d_candidates


def _sums(rows: Tensor, of_entry: Tensor, indptr: Tensor, weights: Tensor) -> Tensor:
    """The sums of rows with weights over the entries of each list, `[lists, D]`.

    Nothing of `[entries, D]` is stored, and there are no atomics: the same bits in every run.
    """
    if len(of_entry) == 0:
        return rows.new_zeros(len(indptr) - 1, rows.shape[1])
    return embedding_bag(
        of_entry,
        rows,
        indptr,
        mode="sum",
        per_sample_weights=weights.contiguous(),
        include_last_offset=True,
    )
