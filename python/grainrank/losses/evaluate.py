"""From a head to a loss: tables in the directions that are wanted, prefixes, reduction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import autograd, backends
from ..batch import Batch
from ..distributed.handshake import on_every_rank
from ..distributed.levels import transposed
from ..distributed.sums import gathered_rows, over_ranks
from ..heads import Negatives, Positives, merge, multi_level_nce
from ..levels import LevelSource
from ..statistics import LevelStatistics, empty_statistics, rows_with_positive, statistics_of
from ..table_sets import TableSet
from .joint import Joint
from .options import Problem, ScaledOptions, prepare

if TYPE_CHECKING:
    from typing_extensions import Unpack

Channels = list[LevelStatistics]  # the tables of one prefix, one for each row of `factors`
Head = Callable[[Sequence[LevelStatistics]], Tensor]


def evaluate(problem: Problem, head: Head, *, full: bool = True, softplus: str = "") -> Tensor:
    """The loss: `head` takes the channels of a prefix and gives the losses of the rows `[N]`, or
    one number.
    """
    return _combined(problem, _sides(problem, full, softplus), head)


def evaluate_nce(
    problem: Problem, level_weights: Tensor, positives: Positives, negatives: Negatives
) -> tuple[Tensor, Channels]:
    """Multi-level NCE, and the light tables of the rows in the longest prefix.

    `level_weights` `[F, L]`: a channel's own. One product less where one direction is reduced.
    """
    batch, shards = problem.batch, problem.shards
    by_tables = problem.direction in ("symmetric", "joint") or problem.reduction == "none"
    if shards is not None and not by_tables:
        # Columns that pass by are met twice in any case; else the own ones go first.
        by_tables = shards.transport == "ring" or backends.multiplies_twice(batch, problem.backend)
    if by_tables:

        def head(channels: Sequence[LevelStatistics]) -> Tensor:
            losses = [
                multi_level_nce(t.lse, t.count, weights, positives, negatives)
                for t, weights in zip(channels, level_weights.unbind(), strict=True)
            ]
            return torch.stack(losses).sum(dim=0)

        sides = _sides(problem, False, "")
        return _combined(problem, sides, head), sides[0][-1]
    by_prefix = level_weights.new_tensor(problem.dim_weights)[:, None, None]
    by_view = (by_prefix * level_weights).reshape(batch.views, -1)
    loss, tables = autograd.multi_level_nce_sum(
        batch, problem.backend, by_view, positives, negatives
    )
    channels = [statistics_of(tables, v) for v in range(batch.views - batch.channels, batch.views)]
    return over_all_rows(problem, loss, channels[0].count), channels


def _combined(problem: Problem, sides: list[list[Channels]], head: Head) -> Tensor:
    losses = []
    for prefixes in sides:
        parts = [head(channels) for channels in prefixes]
        if problem.shards is not None and parts[0].dim() == 0:
            # One number for the batch: from the tables of all its rows.
            shards = problem.shards
            parts = [head([gathered_rows(t, shards) for t in channels]) for channels in prefixes]
        weighted = [w * part for w, part in zip(problem.dim_weights, parts, strict=True)]
        of_side = torch.stack(weighted).sum(dim=0)
        if of_side.dim() > 0 and problem.reduction != "none":
            of_side = over_all_rows(problem, of_side.sum(), prefixes[0][0].count)
        losses.append(of_side)
    return torch.stack(losses).mean(dim=0)


def over_all_rows(problem: Problem, total: Tensor, count: Tensor) -> Tensor:
    """The sum of the own rows' losses as the sum, or the mean, over the rows of all ranks."""
    if problem.reduction == "sum":
        return over_ranks(total, problem.shards).to(total.dtype)
    rows = rows_with_positive(count)
    if problem.shards is None:
        return total / rows.clamp_min(1)
    sums = over_ranks(torch.stack([total.double(), rows.double()]), problem.shards)
    loss: Tensor = sums[0] / sums[1].detach().clamp_min(1)
    return loss.to(total.dtype)


def _sides(problem: Problem, full: bool, softplus: str) -> list[list[Channels]]:
    """For the queries, and in the symmetric direction the candidates: the channels of each
    prefix.
    """
    batch, backend, direction = problem.batch, problem.backend, problem.direction
    if softplus and direction == "joint":
        raise ValueError(
            'direction="joint" has no form for losses that compare every positive by itself; '
            'use another direction, or rince_loss(form="in")'
        )
    if softplus and direction == "symmetric":
        # The sums need the log-sum-exps of the whole row, or column: a sweep for each.
        batches = batch, swapped(batch)
        sides = [_tables(b, backend, full, False, softplus) for b in batches]
        return [rows for rows, _ in sides]
    joint = problem.joint
    both = direction == "symmetric" or (joint is not None and joint.columns)
    rows, columns = _tables(batch, backend, full, both, softplus)
    if joint is not None:
        return [_joined(problem, joint, rows, columns, full)]
    return [rows, columns] if both else [rows]


def swapped(batch: Batch) -> Batch:
    """With the candidates as the rows."""
    shards = batch.shards
    levels = transposed(batch.levels, shards) if shards else batch.levels.transposed()
    return batch._replace(
        queries=batch.candidates,
        candidates=batch.queries,
        levels=levels,
        memory=None,
        shards=None if shards is None else shards.swapped(),
    )


def _tables(
    batch: Batch, backend: str, full: bool, columns: bool, softplus: str
) -> tuple[list[Channels], list[Channels]]:
    rows, of_columns = autograd.level_tables(batch, backend, full, columns, softplus)

    def by_prefix(tables: TableSet) -> list[Channels]:
        f = batch.channels
        return [
            [statistics_of(tables, p * f + i) for i in range(f)] for p in range(len(batch.prefixes))
        ]

    return by_prefix(rows), [] if of_columns is None else by_prefix(of_columns)


def _joined(
    problem: Problem, joint: Joint, rows: list[Channels], columns: list[Channels], full: bool
) -> list[Channels]:
    """The rows' tables with the negatives of the other blocks."""
    n, factors = problem.batch.queries.shape[0], problem.batch.factors
    blocks = [columns] if joint.columns else []
    for batch in (joint.queries, joint.candidates):
        if batch is None:
            continue
        if factors is not None:  # of level 0 alone, which is all that is taken
            of_block = factors[:, :1].expand(-1, batch.levels.max_level + 1)
            batch = batch._replace(factors=of_block)
        batch = batch._replace(scale=problem.batch.scale, circle=problem.batch.circle)
        blocks.append(_tables(batch, problem.backend, full, False, "")[0])
    return [
        [
            merge(row, *(_negatives(block[p][f], n, row) for block in blocks))
            for f, row in enumerate(channels)
        ]
        for p, channels in enumerate(rows)
    ]


def _negatives(block: LevelStatistics, n: int, like: LevelStatistics) -> LevelStatistics:
    """Level 0 of the first n rows, and nothing in the levels above."""
    empty = empty_statistics(like)

    def first(x: Tensor | None, nothing: Tensor | None) -> Tensor | None:
        if x is None or nothing is None:
            return None
        return torch.cat([x[:n, :1], nothing[:, 1:]], dim=1)

    return LevelStatistics(*map(first, block, empty))  # type: ignore[arg-type]


@on_every_rank
def head_loss(
    head: Head,
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    **options: Unpack[ScaledOptions],
) -> Tensor:
    """A loss of your own, from a head on the level tables, with every shared option.

    Args:
        head: takes a list with one `LevelStatistics` and gives the losses of its rows `[N]`, or one
            number; with `group` the latter is called again, with the tables of the rows of all
            ranks.
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]`.
        levels: a level source; None: candidate i is the positive of query i.
        options: `ScaledOptions`.

    Returns:
        The loss, 0-d, or `[N]` for `reduction="none"`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Example:
        The hardest negative stays a margin below the lowest positive, at two prefixes:

        >>> def hinge(tables):
        ...     (t,) = tables
        ...     return torch.relu(t.highest[:, 0] - t.lowest[:, 1] + 2.0)
        >>> generator = torch.Generator().manual_seed(0)
        >>> q, c = torch.randn(2, 8, 16, generator=generator)
        >>> head_loss(hinge, q, c, temperature=0.1, matryoshka_dims=(8, 16)).dim()
        0
    """
    return evaluate(prepare(queries, candidates, levels, **options), head)
