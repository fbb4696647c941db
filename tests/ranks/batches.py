"""One batch as one process has it, and the parts that the ranks of a group have."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grainrank.testing import Shape, make_dense_levels, make_inputs

#: Rows, columns and memory of each rank.
LAYOUTS = {
    "even": ((6, 6, 6, 6), (6, 6, 6, 6), (2, 2, 2, 2)),
    "uneven": ((5, 9, 1, 7), (8, 9, 4, 7), (3, 0, 2, 4)),
    "empty": ((7, 0, 4, 6), (7, 0, 5, 6), (0, 3, 2, 0)),
}
D, LEVELS, REFERENCE = 24, 3, 5


@dataclass(frozen=True)
class Data:
    """The whole batch, or a rank's part; the memory stands behind the candidates in what describes
    both.
    """

    queries: Tensor  # [N, D]
    candidates: Tensor  # [M, D]
    memory: Tensor  # [Q, D]
    query_keys: Tensor  # [N, K]
    candidate_keys: Tensor  # [M, K]
    memory_keys: Tensor  # [Q, K]
    query_ids: Tensor  # [N]
    candidate_ids: Tensor  # [M]
    query_reference: Tensor  # [N, E]
    candidate_reference: Tensor  # [M, E]
    thresholds: Tensor  # [N, 2]
    levels: Tensor  # [N, M], of the own columns
    all_levels: Tensor  # [N, candidates of all ranks]
    all_keys: Tensor  # [columns of all ranks, K], candidates, then memories


def _slices(sizes: tuple[int, ...]) -> list[slice]:
    ends = torch.tensor((0, *sizes)).cumsum(0).tolist()
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


def slices(layout: str, world: int) -> tuple[list[slice], list[slice], list[slice]]:
    """Of the rows, the columns and the memory of each rank."""
    return tuple(_slices(sizes[:world]) for sizes in LAYOUTS[layout])  # type: ignore[return-value]


def whole_batch(layout: str, world: int, dtype: torch.dtype, seed: int, block: bool) -> Data:
    """`block`: no rank has judged another one's candidates."""
    rows, columns, memory = slices(layout, world)
    m, q = columns[-1].stop, memory[-1].stop
    inputs = make_inputs(Shape(m, m + q, D, LEVELS), dtype, seed=seed)
    # Candidate i of a rank is made for its query i.
    kept = torch.cat(
        [
            torch.arange(c.start, c.start + r.stop - r.start)
            for r, c in zip(rows, columns, strict=True)
        ]
    )
    generator = torch.Generator().manual_seed(seed)
    n = len(kept)
    levels = make_dense_levels(Shape(n, m, D), LEVELS, seed=seed)
    if block:
        inside = torch.zeros_like(levels, dtype=torch.bool)
        for r, c in zip(rows, columns, strict=True):
            inside[r, c] = True
        levels = torch.where(inside, levels, 0)
    reference = torch.randn(m, REFERENCE, generator=generator)
    return Data(
        inputs.queries[kept],
        inputs.candidates[:m],
        inputs.candidates[m:],
        inputs.query_keys[kept],
        inputs.candidate_keys[:m],
        inputs.candidate_keys[m:],
        torch.randint(9, (n,), generator=generator),
        torch.randint(9, (m,), generator=generator),
        reference[kept] + 0.3 * torch.randn(n, REFERENCE, generator=generator),
        reference,
        torch.rand(n, 2, generator=generator).sort(dim=1).values * 0.8,
        levels,
        levels,
        inputs.candidate_keys,
    )


def part_of(data: Data, layout: str, world: int, rank: int) -> Data:
    """What a rank has."""
    rows, columns, memory = (s[rank] for s in slices(layout, world))
    parts = {
        name: getattr(data, name)[where]
        for names, where in (
            (("queries", "query_keys", "query_ids", "query_reference", "thresholds"), rows),
            (("candidates", "candidate_keys", "candidate_ids", "candidate_reference"), columns),
            (("memory", "memory_keys"), memory),
        )
        for name in names
    }
    levels = data.levels[rows, columns]
    return replace(data, **parts, levels=levels, all_levels=data.levels[rows])
