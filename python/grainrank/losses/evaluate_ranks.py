"""From a head on ranks to a loss: directions, prefixes, memory, ranks of a group, reduction."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..batch import Batch
from ..distributed.columns import Gathered
from ..distributed.sums import gathered_columns
from ..ranks import PositiveRanks
from ..ranks.compute import smooth
from ..ranks.surrogates import surrogate_of
from .evaluate import over_all_rows, swapped
from .options import Problem

Head = Callable[[PositiveRanks], Tensor]  # the losses of the rows `[N]`
#: The losses of the rows of one prefix `[N]`, and the pairs of each level `[N, L + 1]`.
RowLosses = Callable[[Batch], tuple[Tensor, Tensor]]


def evaluate_ranks(problem: Problem, head: Head, temperature: float, surrogate: str) -> Tensor:
    """The loss: `head` takes the smooth ranks of a prefix and gives the losses of the rows."""
    step = surrogate_of(surrogate, temperature)

    def of_rows(prefix: Batch) -> tuple[Tensor, Tensor]:
        ranks = smooth(prefix, problem.backend, step)
        return head(ranks), ranks.count

    return evaluate_rows(problem, of_rows)


def evaluate_rows(problem: Problem, of_rows: RowLosses) -> Tensor:
    """The loss, from whole rows: each with the candidates of all ranks."""
    if problem.direction == "joint":
        raise ValueError(
            'direction="joint" has no form for losses on ranks; use "query_to_candidate", '
            '"candidate_to_query" or "symmetric"'
        )
    if problem.batch.product == "fused":
        raise ValueError(
            'product="fused" has no form for losses on ranks, whose kernels read a row block; '
            "leave product out"
        )
    if problem.shards is not None and problem.shards.transport == "ring":
        raise ValueError(
            'transport="ring" has no form for losses on ranks, which need whole rows; use "gather"'
        )
    batches = [problem.batch]
    if problem.direction == "symmetric":
        batches.append(swapped(problem.batch))
    sides = []
    for batch in batches:
        parts, count = [], None
        for weight, prefix in zip(problem.dim_weights, _prefixes(_whole(batch)), strict=True):
            with torch.autocast(batch.queries.device.type, enabled=False):
                losses, count = of_rows(prefix)
            parts.append(weight * losses)
        assert count is not None
        losses = torch.stack(parts).sum(dim=0)
        if problem.reduction != "none":
            losses = over_all_rows(problem, losses.sum(), count)
        sides.append(losses)
    return torch.stack(sides).mean(dim=0)


def _whole(batch: Batch) -> Batch:
    """The own rows with the candidates of all ranks."""
    if batch.shards is not None:
        whole = Gathered(batch).whole()
        memory = whole.all_candidates(batch.dtype)[len(whole.candidates) :]
        candidates = gathered_columns(batch.candidates, whole.candidates, batch.shards)
        batch = whole._replace(candidates=candidates, memory=memory, arrival=None)
    return batch


def _prefixes(batch: Batch) -> Iterator[Batch]:
    for p, width in enumerate(batch.prefixes):
        yield batch._replace(
            queries=batch.queries[:, :width],
            candidates=batch.candidates[:, :width],
            memory=None if batch.memory is None else batch.memory[:, :width],
            levels=batch.levels.of_prefix(p),
            dims=(),
        )
