"""From a head on ranks to a loss: directions, prefixes, memory, ranks of a group, reduction."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..batch import Batch
from ..distributed.columns import Gathered
from ..distributed.sums import gathered_columns
from ..ranks import PositiveRanks
from ..ranks.blocks import rows_of
from ..ranks.smooth import smooth_ranks
from ..row_blocks import DEFAULT_WORKSPACE
from .evaluate import over_all_rows, swapped
from .options import Problem

Head = Callable[[PositiveRanks], Tensor]  # the losses of the rows `[N]`


def evaluate_ranks(problem: Problem, head: Head, temperature: float, surrogate: str) -> Tensor:
    """The loss: `head` takes the smooth ranks of a prefix and gives the losses of the rows."""
    if problem.direction == "joint":
        raise ValueError(
            'direction="joint" has no form for losses on ranks; use "query_to_candidate", '
            '"candidate_to_query" or "symmetric"'
        )
    if problem.backend not in ("auto", "reference"):
        raise ValueError(
            f"losses on ranks are computed by PyTorch, without kernels of their own; "
            f'backend must be "auto" or "reference", got "{problem.backend}"'
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
        parts, ranks = [], None
        for weight, prefix in zip(problem.dim_weights, _prefixes(_whole(batch)), strict=True):
            ranks = _ranks(prefix, temperature, surrogate)
            parts.append(weight * head(ranks))
        assert ranks is not None
        losses = torch.stack(parts).sum(dim=0)
        if problem.reduction != "none":
            losses = over_all_rows(problem, losses.sum(), ranks.count)
        sides.append(losses)
    return torch.stack(sides).mean(dim=0)


def _ranks(batch: Batch, temperature: float, surrogate: str) -> PositiveRanks:
    sides = batch.queries, batch.candidates
    q, c = (rows_of(x, batch.dtype, batch.normalize) for x in sides)
    workspace = batch.workspace_mb or DEFAULT_WORKSPACE / 2**20
    return smooth_ranks(q, c, batch.levels, temperature, surrogate, workspace)


def _whole(batch: Batch) -> Batch:
    """The own rows with the candidates of all ranks, and no memory apart."""
    if batch.shards is not None:
        whole = Gathered(batch).whole()
        memory = whole.all_candidates(batch.dtype)[len(whole.candidates) :]
        candidates = gathered_columns(batch.candidates, whole.candidates, batch.shards)
        batch = whole._replace(candidates=candidates, memory=memory, arrival=None)
    if batch.memory is None:
        return batch
    both = torch.cat([batch.candidates.to(batch.dtype), batch.memory.to(batch.dtype)])
    return batch._replace(queries=batch.queries.to(batch.dtype), candidates=both, memory=None)


def _prefixes(batch: Batch) -> Iterator[Batch]:
    for p, width in enumerate(batch.prefixes):
        yield batch._replace(
            queries=batch.queries[:, :width],
            candidates=batch.candidates[:, :width],
            levels=batch.levels.of_prefix(p),
            dims=(),
        )
