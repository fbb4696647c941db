"""The CUDA passes over ranks of one row block, whose similarities are given, on the simulator."""

from __future__ import annotations

import shutil
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from compiled.simulated_cuda import module, simulated
from compiled.test_cuda_ranks import each_surrogate, weights
from test_level_sources import sources
from test_ranks import TIES, integers
from torch import Tensor

from grainrank import DenseLevels, LevelSource
from grainrank.batch import Batch
from grainrank.ranks.surrogates import surrogate_of
from grainrank.row_blocks import Block, RowBlocks
from grainrank.testing import Draw, Shape, assert_accurate, make_inputs

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
WIDE = 4200  # columns: three splits, the last one short
SPLITS = {"as launched": None, "one": 1, "more than there are": 7}
each_split = pytest.mark.parametrize("splits", list(SPLITS))


class Expected(NamedTuple):
    above: Tensor  # [P, L + 1]
    slope: Tensor
    at_least: Tensor
    gradient: Tensor  # [R, M], of the product


def whole_block(inputs: Any, levels: LevelSource) -> tuple[Any, Block]:
    """The passes, and a block of all rows with room for a gradient."""
    from grainrank.cuda_ranks import CudaRankPasses

    one = torch.ones((), dtype=torch.float64 if inputs[0].dtype == torch.float64 else torch.float32)
    batch = Batch(inputs.queries, inputs.candidates, one, levels)
    passes = CudaRankPasses(batch)
    (item,) = RowBlocks(batch, passes, one)
    return passes, item.blocks[0]


@pytest.mark.parametrize("name", list(sources(2, 2)))
@pytest.mark.parametrize("side", ["as given", "transposed"])
def test_levels(name: str, side: str) -> None:
    n, m = 35, 67
    source = sources(n, m)[name]
    if side == "transposed":
        source, n, m = source.transposed(), m, n
    with simulated(80, seed=1):
        passes, block = whole_block(make_inputs(Shape(n, m, 4)), source)
        levels, count = passes.block_levels(block)
    expected = source.block(0, n, m)
    assert torch.equal(levels, expected)
    assert levels.dtype == torch.int8
    for level in range(source.max_level + 1):
        assert torch.equal(count[:, level], (expected == level).sum(dim=1))


def tied_block(n: int, m: int, every: int, dtype: torch.dtype) -> tuple[Any, Block, Tensor]:
    """Few values, and so many equal ones, times factors that are not powers of 2; levels -1 .. 3,
    above 0 in one of `every` columns.
    """
    levels = integers(-1, 4, n, m, seed=1)
    levels = torch.where(torch.arange(m) % every == 0, levels, levels.clamp(max=0))
    passes, block = whole_block(make_inputs(Shape(n, m, 4), dtype), DenseLevels(levels, 3))
    for out, values in (
        (block.similarities, integers(-9, 10, n, m, seed=2) / 7),
        (block.row_factors, 1.1 / integers(1, 9, n, seed=4)),
        (block.column_factors, 1 / integers(3, 5, m, seed=3)),
    ):
        assert out is not None
        out.copy_(values)
    return passes, block, levels


def similarities(block: Block) -> Tensor:
    assert block.similarities is not None
    assert block.row_factors is not None
    assert block.column_factors is not None
    return block.similarities * (block.row_factors[:, None] * block.column_factors)


def exact_by_definition(s: Tensor, levels: Tensor, size: int, ties: str) -> Tensor:
    rows = []
    columns = torch.arange(s.shape[1])
    for i, p in (levels > 0).nonzero().tolist():
        equal = {
            "first": columns < p,
            "last": columns > p,
            "optimistic": columns < 0,
            "pessimistic": columns != p,
        }[ties]
        above = (s[i] > s[i, p]) | ((s[i] == s[i, p]) & equal)
        rows.append([int((above & (levels[i] == k)).sum()) for k in range(size + 1)])
    return torch.tensor(rows)


def smooth_by_definition(
    s: Tensor, levels: Tensor, size: int, step: Any, d_above: Tensor, own: Tensor, dtype: Any
) -> Expected:
    row, column = (levels > 0).nonzero(as_tuple=True)
    x = (s[row] - s[row, column][:, None]).to(dtype)  # exact in float64
    there = levels[row]
    below = there < there.gather(1, column[:, None])
    there = there.scatter(1, column[:, None], -1)
    of_level = [(there == k) for k in range(size + 1)]
    value, slope = step.value(x, below), step.slope(x, below)
    weight = torch.where(there < 0, 0.0, d_above.to(dtype).gather(1, there.clamp(min=0)))
    g = torch.zeros_like(s, dtype=dtype).index_add_(0, row, weight * slope)
    g[row, column] -= own.to(dtype)
    return Expected(
        *(torch.stack([(f * k).sum(dim=1) for k in of_level], dim=1) for f in (value, slope)),
        torch.stack([((x >= 0) & k).sum(dim=1) for k in of_level], dim=1),
        g,
    )


def split_into(splits: str) -> Any:
    count = SPLITS[splits]
    native = module(80)
    chosen = native.rank_splits if count is None else lambda positives, columns: count
    return mock.patch.object(native, "rank_splits", chosen)


def test_splits_fill_a_gpu() -> None:
    native = module(80)
    assert native.rank_splits(3, WIDE) == 3
    assert native.rank_splits(100_000, WIDE) == 1
    assert native.rank_splits(3, 2048) == 1
    assert native.rank_splits(0, 0) == 1
    assert native.rank_splits(4096, 10 * 2048) == 2


@each_split
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("ties", TIES)
def test_ties_of_scaled_similarities(ties: str, dtype: torch.dtype, splits: str) -> None:
    """Equal ones have equal bits, whatever they are multiplied by."""
    with simulated(80, seed=1), split_into(splits):
        passes, block, levels = tied_block(2, WIDE, 61, dtype)
        found, count = passes.block_levels(block)
        positives = passes.positives(block, found, count)
        above = passes.exact_ranks(block, found, positives, ties)
    assert torch.equal(found.long(), levels)
    assert torch.equal(above, exact_by_definition(similarities(block), levels, 3, ties))


@each_split
@pytest.mark.parametrize("positives", ["few in wide rows", "many"])
@each_surrogate
def test_smooth_ranks_of_scaled_similarities(surrogate: str, positives: str, splits: str) -> None:
    """By the definition in the rule of accuracy; equal similarities are at 0 of the step."""
    step = surrogate_of(surrogate, 0.05)
    n, m, every = (2, WIDE, 131) if positives.startswith("few") else (3, 203, 1)
    for dtype in (torch.float32, torch.float64):
        with simulated(80, seed=1), split_into(splits):
            passes, block, levels = tied_block(n, m, every, dtype)
            s = similarities(block)
            found, count = passes.block_levels(block)
            given = passes.positives(block, found, count)
            sums = passes.smooth_ranks(block, found, given, step)
            d_above = weights(sums.above)
            own = (d_above * sums.slope).sum(dim=1)
            passes.rank_gradient_(block, found, given, step, d_above, own)
        arguments = s, levels, 3, step, d_above, own
        truth = smooth_by_definition(s.double(), *arguments[1:], torch.float64)
        reference = smooth_by_definition(*arguments, dtype)
        assert torch.equal(sums.at_least, truth.at_least)
        assert block.gradient is not None
        assert block.row_factors is not None
        assert block.column_factors is not None
        factors = block.row_factors[:, None] * block.column_factors
        results = {
            "above": (sums.above, reference.above, truth.above),
            "slope": (sums.slope, reference.slope, truth.slope),
            "gradient": (
                block.gradient,
                reference.gradient * factors,
                truth.gradient * factors.double(),
            ),
        }
        for name, (actual, expected, exact) in results.items():
            if dtype == torch.float64:
                assert (actual - exact).abs().max() <= 1e-12 * exact.abs().max(), name
            else:
                assert_accurate(name, Draw(actual.clone(), expected, exact))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"levels": 8}, "not aligned to 16 bytes"),
        ({"level_stride": 24}, "not aligned to 16 bytes"),
        ({"level_stride": 0}, "a size is negative, too large or smaller"),
        ({"positives": -1}, "a size is negative, too large or smaller"),
        ({"positives": 1 << 34}, "a size is negative, too large or smaller"),
        ({"splits": 0}, "a size is negative, too large or smaller"),
        ({"dtype": 2}, "no kernel for this combination of dtypes"),
    ],
    ids=str,
)
def test_what_a_launcher_refuses(changed: dict[str, int], message: str) -> None:
    """Before anything is launched."""
    native, given = module(80), dict(changed)
    source = native.Source(kind=int(native.SourceKind.DIAGONAL), max_level=1)
    block = native.Block(
        dtype=given.pop("dtype", 0), similarities=16, rows=2, columns=8, row_stride=8, first_row=0,
        scale=0, row_factors=0, column_factors=0, circle=False, circle_margin=0.0,
        ceilings=native.Ceilings(), levels=native.Levels(1, [source], []),
    )  # fmt: skip
    splits = given.pop("splits", 1)
    addresses = dict.fromkeys(("starts", "row", "column", "level", "similarity"), 0)
    sizes = {"levels": 16, "level_stride": 16, "positives": 1} | given
    with pytest.raises(RuntimeError, match=f"CUDA passes: .*{message}"):
        native.exact_ranks(
            block, native.Positives(**sizes, **addresses), ties=0, splits=splits, above=0, stream=0
        )
