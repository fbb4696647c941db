"""The further blocks of the joint direction: query-query and candidate-candidate pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..batch import Batch
from ..distributed.levels import own_numbers
from ..levels import (
    Ceiled,
    Diagonal,
    Excluded,
    FalseNegativeMargin,
    GrainKeys,
    LevelSource,
    as_source,
)
from ..validation import check_choice

JointBlock = Literal["query_query", "candidate_query", "candidate_candidate"]
JOINT_BLOCKS: tuple[JointBlock, ...] = ("query_query", "candidate_query", "candidate_candidate")


class Joint(NamedTuple):
    """The blocks that are wanted."""

    queries: Batch | None  # [N, N]
    columns: bool  # the queries as the candidates see them
    candidates: Batch | None  # [N, M], of the first N candidates


def check_joint(
    blocks: Sequence[JointBlock],
    embeddings: tuple[Tensor, Tensor],
    levels: tuple[LevelSource | None, LevelSource | None],
    check_levels: Callable[[LevelSource, int, int, torch.device], None],
) -> None:
    """`levels` of the queries and of the candidates.

    Raises:
        ValueError: fewer candidates than queries, an unknown block, or levels that do not fit it.
    """
    if isinstance(blocks, str):
        raise TypeError(f'joint_blocks must be a sequence of names, got "{blocks}"')
    for block in blocks:
        check_choice("joint_blocks", block, JOINT_BLOCKS)
    n, m = (x.shape[0] for x in embeddings)
    if m < n:
        raise ValueError(
            f'candidates must have at least N = {n} rows for direction="joint", where candidate i '
            f"belongs to query i, got {m}"
        )
    sides = ("query_query", "candidate_candidate")
    for side, source, columns in zip(sides, levels, (n, m), strict=True):
        if side in blocks and source is not None:
            check_levels(as_source(source), n, columns, embeddings[0].device)


def make_joint(
    batch: Batch,
    levels: LevelSource,
    blocks: Sequence[JointBlock],
    query_levels: LevelSource | None,
    candidate_levels: LevelSource | None,
) -> Joint:
    """`levels` before their ceilings were resolved, `batch` with resolved ones.

    Raises:
        ValueError: levels that say nothing of the blocks.
    """
    q, c = batch.queries, batch.candidates
    n = q.shape[0]

    def of_side(side: int, name: str, given: LevelSource | None) -> LevelSource:
        source = _derived(name, levels, side, batch) if given is None else given
        if isinstance(batch.levels, Ceiled):
            return batch.levels.of_block(source, side, n)
        return source

    queries = candidates = None
    if "query_query" in blocks:
        of_queries = of_side(0, "query_levels", query_levels)
        shards = None if batch.shards is None else batch.shards.of_queries()
        queries = batch._replace(candidates=q, levels=of_queries, shards=shards)
    if "candidate_candidate" in blocks:
        of_candidates = of_side(1, "candidate_levels", candidate_levels)
        candidates = batch._replace(queries=c[:n], levels=of_candidates)
    return Joint(queries, "candidate_query" in blocks, candidates)


def _derived(name: str, levels: LevelSource, side: int, batch: Batch) -> LevelSource:
    """Pairs of one side: negatives where they share no key, nobody compared with itself."""
    device, rows, shards = batch.queries.device, batch.queries.shape[0], batch.shards
    columns = (batch.queries, batch.candidates)[side].shape[0]
    if shards is None:
        ids = torch.arange(columns, device=device)
    else:
        ids = own_numbers((shards.rows, shards.columns)[side], shards, device)
    base = levels.base if isinstance(levels, FalseNegativeMargin) else levels
    if isinstance(base, Excluded):
        ids = base.ids[side]
        base = base.base
    if isinstance(base, Diagonal):
        keys = torch.full((columns, 1), -1, device=device)  # unknown: equals nothing
    elif isinstance(base, GrainKeys):
        keys = base.tensors[side]
    else:
        raise ValueError(
            f'{name} must be given for direction="joint" with {type(base).__name__}, which says '
            f"nothing of these pairs; pass a level source for them"
        )
    return GrainKeys(keys[:rows], keys).exclude(ids[:rows], ids)
