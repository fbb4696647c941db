"""Level statistics: the tables on which every loss head is built, and what a loss step reports."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from . import autograd
from .backends import Backend, check_backend
from .heads import level_losses
from .levels import LevelSource, as_source
from .sweep import TableSet
from .validation import check_embeddings, check_scale, check_workspace


class LevelStatistics(NamedTuple):
    """Row tables `[N, L + 1]` of the logits `z = scale * similarity`; column l belongs to level l.

    An empty level holds -1e30 in `lse`, `neg_lse` and `highest`, 1e30 in `lowest`, 0 in `total` and
    `count`, -1 in the column tables: finite, so that a difference of two empty levels is 0. Mask
    with `count > 0`.
    """

    lse: Tensor  #: `log sum exp(z)` over the level
    neg_lse: Tensor  #: `log sum exp(-z)` over the level; levels >= 1, column 0 holds -1e30
    total: Tensor  #: `sum z` over the level
    count: Tensor  # type: ignore[assignment]  #: number of pairs, int64
    highest: Tensor  #: highest logit of the level
    lowest: Tensor  #: lowest logit of the level
    highest_at: Tensor  #: the (first) candidate that has it, int64
    lowest_at: Tensor  #: the (first) candidate that has it, int64


def level_statistics(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    temperature: float | Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    normalize: bool = True,
    backend: Backend = "auto",
    workspace_mb: float | None = None,
) -> LevelStatistics:
    """The tables from which a graded loss is made, differentiable, without the N x M matrix.

    A loss head is ordinary PyTorch on these tables; see the example. `lse`, `neg_lse`, `total`,
    `highest` and `lowest` are differentiable in queries, candidates and the scale; the backward
    computes the similarities again.

    Args:
        queries: embeddings `[N, D]`, float16, bfloat16, float32 or float64.
        candidates: embeddings `[M, D]` of the same dtype and device.
        levels: a level source; None: candidate i is the positive of query i.
        temperature: logits are similarity / temperature; number or 0-d tensor. Exactly one of
            `temperature` and `logit_scale` must be given.
        logit_scale: logits are similarity * logit_scale; number or 0-d tensor.
        normalize: cosine similarity (default); False: dot product.
        backend: `"auto"`, `"cpu"` or `"reference"`.
        workspace_mb: bound of the row block's memory in MiB; None: 64 MiB, or 1024 rows where these
            need more.

    Returns:
        `LevelStatistics`, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Example:
        A loss of your own: the hardest negative stays a margin below the lowest positive.

        >>> generator = torch.Generator().manual_seed(0)
        >>> q, c = torch.randn(2, 8, 16, generator=generator).requires_grad_().unbind()
        >>> stats = level_statistics(q, c, temperature=0.1)
        >>> has = stats.count[:, 1] > 0
        >>> loss = torch.relu(stats.highest[:, 0] - stats.lowest[:, 1] + 2.0)[has].mean()
        >>> loss.backward()
    """
    q, c = check_embeddings(queries, candidates)
    source = as_source(levels)
    source.check(q.shape[0], c.shape[0], q.device)
    check_backend(backend, q.device)
    scale = check_scale(temperature, logit_scale, q)
    workspace = check_workspace(workspace_mb)
    tables = autograd.level_tables(q, c, scale, source, normalize, backend, workspace, full=True)
    return LevelStatistics(*tables)  # type: ignore[arg-type]


class LossStatistics(NamedTuple):
    """What `return_stats=True` adds; detached tensors. A level without any pair has 0."""

    rows_used: Tensor  #: rows with a positive at any level, int64 0-d
    level_loss: Tensor  #: `[L]`, unweighted mean of the level's term over the rows that have it
    level_rows: Tensor  #: `[L]`, int64, these rows
    level_similarity: Tensor  #: `[L + 1]`, mean similarity of the pairs of the level
    level_pairs: Tensor  #: `[L + 1]`, int64, these pairs
    wrong_order: Tensor  #: 0-d, share of adjacent levels of a row with a lower mean for the higher


def loss_statistics(
    tables: TableSet, scale: Tensor, positives: str, negatives: str
) -> LossStatistics:
    """From the tables of the batch.

    Adjacent: next to each other among the levels that the row has.
    """
    lse, total, count = tables.lse, cast(Tensor, tables.total), tables.count
    with torch.no_grad():
        level_loss, level_rows = level_losses(lse, count, positives, negatives)
        pairs = count.sum(dim=0)
        similarity = total.sum(dim=0) / scale / pairs.clamp_min(1)
        mean = total / count.clamp_min(1)  # [N, L + 1]
        adjacent = torch.zeros_like(pairs[0])
        wrong = torch.zeros_like(pairs[0])
        below, has_below = mean[:, 0], count[:, 0] > 0
        for level in range(1, count.shape[1]):
            has = count[:, level] > 0
            both = has & has_below
            adjacent = adjacent + both.sum()
            wrong = wrong + (both & (mean[:, level] < below)).sum()
            below = torch.where(has, mean[:, level], below)
            has_below = has_below | has
        return LossStatistics(
            rows_used=rows_with_positive(count),
            level_loss=level_loss,
            level_rows=level_rows,
            level_similarity=similarity,
            level_pairs=pairs,
            wrong_order=wrong / adjacent.clamp_min(1),
        )


def rows_with_positive(count: Tensor) -> Tensor:
    """Number of rows with a positive at any level, int64 0-d."""
    return (count[:, 1:].sum(dim=1) > 0).sum()
