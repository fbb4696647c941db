"""The public function: from embeddings to the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ..levels import LevelSource
from ..ranks import positive_ranks
from ..validation import check_choice
from .report import Report, report_of

Embeddings = Tensor | np.ndarray[Any, Any]
Ties = Literal["first", "last", "optimistic", "pessimistic"]
TIES = ("first", "last", "optimistic", "pessimistic")


def evaluate_embeddings(
    queries: Embeddings,
    candidates: Embeddings,
    levels: LevelSource | None = None,
    *,
    ks: Sequence[int] = (1, 10),
    ndcg_k: int | None = 10,
    gain: Literal["linear", "exp2"] | Sequence[float] = "linear",
    ties: Ties = "last",
    normalize: bool = True,
    level_names: Sequence[str] | None = None,
    workspace_mb: float | None = None,
) -> Report:
    """Every metric of `grainrank.metrics` that says how a retriever ranks, at every grain.

    The similarities are computed once (`positive_ranks`), row block by row block.

    Args:
        queries: embeddings `[N, D]`, float16, bfloat16, float32 or float64: a tensor, a numpy array
            or memmap.
        candidates: embeddings `[M, D]`, likewise, of the same dtype.
        levels: a level source with levels 1..L; None: candidate i is the positive of query i. A
            candidate that is the query itself is left out with `levels.exclude(ids, ids)`.
        ks: how many of the best candidates recall and success look at, each 1 or more.
        ndcg_k: the same of nDCG; None: all.
        gain: of nDCG: `"linear"` (the level), `"exp2"` (`2^level - 1`), or a number of each level,
            `[L + 1]`, 0 for level 0.
        ties: what equal similarities mean, as in `positive_ranks`; `"last"` (default) is the order
            of trec_eval where the candidates are in the order of their ids.
        normalize: cosine similarity (default); False: dot product.
        level_names: L names for the report, coarse to fine; None: `level 1`, `level 2`, ...
        workspace_mb: bound of a row block's memory in MiB; None (default): as `positive_ranks`.

    Returns:
        `Report`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or value; a NaN or
            infinity in the embeddings.

    Example:
        >>> from grainrank.evaluation import evaluate_embeddings
        >>> queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> candidates = torch.tensor([[1.0, 0.1], [1.0, 0.5], [0.5, 1.0]])
        >>> levels = GrainKeys(
        ...     torch.tensor([[0, 0], [1, 2]]), torch.tensor([[0, 0], [0, 1], [1, 2]])
        ... )
        >>> report = evaluate_embeddings(queries, candidates, levels, level_names=["shop", "item"])
        >>> report.levels[1].name, report.levels[1].recall[1]
        ('item', 1.0)
    """
    names = _names(level_names)
    cutoffs = _cutoffs(ks)
    check_choice("ties", ties, TIES)
    ranks = positive_ranks(
        queries, candidates, levels, ties=ties, normalize=normalize, workspace_mb=workspace_mb
    )
    return report_of(
        ranks,
        candidates=len(candidates),
        cutoffs=cutoffs,
        ndcg_k=ndcg_k,
        gain=gain,
        names=names,
        ties=ties,
        similarity="cosine" if normalize else "dot",
    )


def _cutoffs(ks: Sequence[int]) -> tuple[int, ...]:
    if isinstance(ks, str) or not isinstance(ks, Sequence) or len(ks) == 0:
        raise TypeError(f"ks must be a sequence of ints, got {ks!r}; pass (1, 10), or (1,)")
    return tuple(dict.fromkeys(ks))


def _names(level_names: Sequence[str] | None) -> tuple[str, ...] | None:
    if level_names is None:
        return None
    if isinstance(level_names, str) or not all(isinstance(name, str) for name in level_names):
        raise TypeError(
            f"level_names must be a sequence of strings, got {level_names!r}; "
            f'pass ["coarse", ..., "fine"]'
        )
    return tuple(level_names)
