"""Runs: the best candidates of each query, as TREC's tools read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..top_k import search
from .embeddings import Embeddings
from .tasks import Task

_CHUNK = 65_536  # rows of a file that are turned at once


def write_run(
    path: Path,
    queries: Embeddings,
    candidates: Embeddings,
    task: Task,
    *,
    depth: int,
    ties: str,
    normalize: bool,
    same: tuple[Tensor, Tensor] | None,
    workspace_mb: float | None,
) -> None:
    """`query Q0 candidate rank score grainrank`, the best first; scores as exact as computed.

    Args:
        depth: candidates of each query; all where there are fewer.
        ties: `"first"`: equal scores in the order of the candidates; else in the reverse order,
            that of trec_eval.
        same: numbers of the ids, as `search` excludes them.
    """
    m = len(candidates)
    # `search` puts the first of equal ones first.
    turn = ties != "first"
    if turn:
        same = None if same is None else (same[0], same[1].flip(0))
    found = search(
        queries,
        _reversed(candidates) if turn else candidates,
        min(depth, m),
        normalize=normalize,
        exclude=same,
        workspace_mb=workspace_mb,
    )
    with path.open("w", encoding="utf-8") as file:
        for query, scores, indices in zip(task.query_ids, found.scores, found.indices, strict=True):
            pairs = zip(scores.tolist(), indices.tolist(), strict=True)
            for rank, (score, index) in enumerate(pairs, start=1):
                if index < 0:
                    break
                item = task.candidate_ids[m - 1 - index if turn else index]
                file.write(f"{query} Q0 {item} {rank} {score!r} grainrank\n")


def _reversed(rows: Embeddings) -> Tensor | Iterator[np.ndarray[Any, Any]]:
    """Rows from last to first; of a file some at a time."""
    if isinstance(rows, Tensor):
        return rows.flip(0)
    ends = range(len(rows), 0, -_CHUNK)
    return (np.ascontiguousarray(rows[max(0, end - _CHUNK) : end][::-1]) for end in ends)
