"""A small model, and a batch that is spread over ranks: what a loss is tried on."""

from __future__ import annotations

import itertools
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..testing import Inputs, Shape, make_inputs

Layout = Literal["even", "uneven", "empty"]
LAYOUTS = ("even", "uneven", "empty")
_EVEN, _UNEVEN = (6,), (5, 9, 1, 7)  # rows of rank 0, 1, .. and from the start again
_MORE = (3, 0, 3, 1)  # candidates without a query of their own
_FEATURES, _D, _GRAINS = 12, 8, 3
_SCALE, _BIAS = 6.0, -2.0


class Step(NamedTuple):
    """What a loss gets: a rank's part, or the whole batch."""

    queries: Tensor  # [N, D]
    candidates: Tensor  # [M, D]
    scale: Tensor  # 0-d, learned
    bias: Tensor  # 0-d, learned where a plan says so
    query_keys: Tensor  # [N, K]
    candidate_keys: Tensor  # [M, K]


class Encoders(nn.Module):
    """Two linear encoders, and the logarithm of the scale; the same numbers in every dtype."""

    def __init__(self, dtype: torch.dtype, device: torch.device, bias: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def parameter(x: Tensor) -> nn.Parameter:
            # Rounded to float32 first: the truth is that of the same numbers.
            return nn.Parameter(x.float().to(device=device, dtype=dtype))

        shape = _D, _FEATURES
        self.queries = parameter(torch.randn(shape, generator=generator))
        self.candidates = parameter(torch.randn(shape, generator=generator))
        # One element, not 0-d: what FSDP can shard.
        self.log_scale = parameter(torch.tensor([math.log(_SCALE)]))
        self.bias = parameter(torch.tensor([_BIAS])) if bias else None

    def forward(self, queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Sums of one element, since FSDP warns of views.
        scale = self.log_scale.exp().sum()
        bias = torch.zeros_like(scale) if self.bias is None else self.bias.sum()
        return queries @ self.queries.T, candidates @ self.candidates.T, scale, bias


def spread(layout: Layout, world: int, pairs: bool) -> tuple[list[slice], list[slice]]:
    """The rows and columns of each rank; `pairs`: as many columns as rows."""
    sizes = _EVEN if layout == "even" else _UNEVEN
    rows = list(itertools.islice(itertools.cycle(sizes), world))
    more = list(itertools.islice(itertools.cycle(_MORE), world))
    if layout == "even" or pairs:
        more = [0] * world
    columns = [n + extra for n, extra in zip(rows, more, strict=True)]
    if layout == "empty":
        rows[1] = columns[1] = 0
    return _slices(rows), _slices(columns)


def whole_batch(layout: Layout, world: int, pairs: bool, seed: int) -> Inputs:
    """float32 values of the encoders' inputs; column i of a rank is made for its row i."""
    rows, columns = spread(layout, world, pairs)
    m = columns[-1].stop
    whole = make_inputs(Shape(m, m, _FEATURES, _GRAINS), seed=seed)
    made_for = [
        torch.arange(c.start, c.start + r.stop - r.start)
        for r, c in zip(rows, columns, strict=True)
    ]
    kept = torch.cat(made_for)
    return whole._replace(queries=whole.queries[kept], query_keys=whole.query_keys[kept])


def part_of(whole: Inputs, rows: slice, columns: slice) -> Inputs:
    """A rank's part."""
    return Inputs(
        whole.queries[rows],
        whole.candidates[columns],
        whole.query_keys[rows],
        whole.candidate_keys[columns],
    )


def _slices(sizes: list[int]) -> list[slice]:
    ends = [0, *itertools.accumulate(sizes)]
    return [slice(a, b) for a, b in itertools.pairwise(ends)]
