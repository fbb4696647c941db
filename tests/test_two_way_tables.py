"""Light tables of rows and columns together, and gradients of both, where few pairs are of another
level than 0: the C++ computes one exponential for the two. Compared with their definitions.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from grainrank import Diagonal, GrainKeys, LevelSource
from grainrank.testing import Shape, make_inputs

pytest.importorskip("grainrank.cpu")

from row_block import SCALE, START, few_levels, given, passes, sparse

from grainrank.row_blocks import Channel, ColumnTables
from grainrank.table_sets import TableGradientSet, TableSet

N, R, M = 160, 150, 1100  # a block of several groups of rows and panels of columns
#: Of the largest, for logits below 20.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 2e-14}
SPREADS = pytest.mark.parametrize("spread", ["close", "near", "columns", "rows"])
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@pytest.fixture(params=["diagonal", "keys", "sparse"])
def source(request: pytest.FixtureRequest) -> LevelSource:
    if request.param == "diagonal":
        return Diagonal()
    query_keys, candidate_keys = make_inputs(Shape(N, M, 4, 3), seed=3, unknown=0.2)[2:]
    if request.param == "keys":
        # A whole panel and more is of another level than 0 in some rows.
        candidate_keys[:700, 0] = 999
        query_keys[START + 2 : START + 20, 0] = 999
        return GrainKeys(query_keys, candidate_keys)
    levels = few_levels(N, M)
    levels[START : START + R, 5] = -1  # a column without a pair
    levels[START : START + R, 7] = 2  # and one without a pair of level 0
    return sparse(levels)


def similarities(spread: str, dtype: torch.dtype) -> Tensor:
    """A view into wider rows whose rest is NaN."""
    generator = torch.Generator().manual_seed(1)
    s = torch.randn(R, M, generator=generator, dtype=torch.float64)
    if spread in ("near", "columns"):  # below the others of their rows, by each amount
        most = 5 if spread == "near" else 40
        s[:, ::3] -= torch.linspace(0, most, len(range(0, M, 3)), dtype=torch.float64)
    elif spread == "rows":
        s += torch.linspace(-20, 20, R, dtype=torch.float64)[
            torch.randperm(R, generator=generator)
        ][:, None]
    memory = torch.full((R + 1, M + 19), torch.nan, dtype=dtype)
    memory[:R, :M] = s
    return memory[:R, :M]


def run(s: Tensor, levels: LevelSource, name: str, columns: int = M) -> tuple[TableSet, TableSet]:
    size = levels.max_level + 1
    rows, of_columns = (
        TableSet.empty(n, size, dtype=s.dtype, device=s.device, full=False) for n in (R, columns)
    )
    passes(s, levels, name, N).tables(given(s), 0, rows, of_columns)
    return rows, of_columns


def logits(s: Tensor) -> Tensor:
    return (s * SCALE).double()


def expected(s: Tensor, levels: LevelSource, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """lse, total, count of every level, in float64."""
    z, level = logits(s), levels.block(START, START + R, M)
    of_level = [level == y for y in range(levels.max_level + 1)]
    lse = [torch.where(here, z, -torch.inf).logsumexp(dim) for here in of_level]
    total = [torch.where(here, z, 0.0).sum(dim) for here in of_level]
    count = [here.sum(dim) for here in of_level]
    return torch.stack(lse, 1), torch.stack(total, 1), torch.stack(count, 1)


@SPREADS
@DTYPES
def test_tables(source: LevelSource, dtype: torch.dtype, spread: str, instruction_set: str) -> None:
    s = similarities(spread, dtype)
    before = s.clone()
    tables = run(s, source, instruction_set)
    assert torch.equal(s, before)
    tolerance = TOLERANCE[dtype] * (1 if spread == "close" else 10)
    for dim, got in enumerate(reversed(tables)):
        lse, total, count = expected(s, source, dim)
        assert torch.equal(got.count, count)
        torch.testing.assert_close(got.total.double(), total, rtol=tolerance, atol=tolerance * 500)
        lse = torch.where(count == 0, -1e30, lse)
        torch.testing.assert_close(got.lse.double(), lse, rtol=tolerance, atol=tolerance * 10)


def test_the_memory_has_no_tables(source: LevelSource, instruction_set: str) -> None:
    s = similarities("close", torch.float32)
    rows, columns = run(s, source, instruction_set)
    same, first = run(s, source, instruction_set, columns=600)
    for name in ("lse", "total", "count"):
        assert torch.equal(getattr(rows, name), getattr(same, name))
        assert torch.equal(getattr(columns, name)[:600], getattr(first, name))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_a_number_that_is_none_stays_in_its_row_and_column(
    source: LevelSource, value: float, instruction_set: str
) -> None:
    s = similarities("close", torch.float32)
    row, column = 70, 600
    level = int(source.block(START + row, START + row + 1, M)[0, column])
    bad = s.clone()
    bad[row, column] = value
    whole, got = run(s, source, instruction_set), run(bad, source, instruction_set)
    for at, a, b in zip((row, column), whole, got, strict=True):
        assert not bool(b.total[at, level].isfinite())
        if value != -torch.inf:
            assert not bool(b.lse[at, level].isfinite())
        there = torch.ones_like(a.lse, dtype=torch.bool)
        there[at, level] = False
        torch.testing.assert_close(a.lse[there], b.lse[there], rtol=2e-6, atol=1e-5)
        torch.testing.assert_close(a.total[there], b.total[there], rtol=2e-6, atol=1e-3)


@SPREADS
@DTYPES
def test_gradients(
    source: LevelSource, dtype: torch.dtype, spread: str, instruction_set: str
) -> None:
    s = similarities(spread, dtype)
    rows, columns = run(s, source, instruction_set)
    generator = torch.Generator().manual_seed(2)
    of_rows, of_columns = (
        TableGradientSet(lse=torch.rand(t.lse.shape, generator=generator).to(dtype))
        for t in (rows, columns)
    )
    level = source.block(START, START + R, M)
    y = level.clamp_min(0).long()
    z, (at_row, at_column) = logits(s), (torch.arange(R)[:, None], torch.arange(M))
    of_row = of_rows.lse[at_row, y] * (z - rows.lse[at_row, y]).exp()
    of_column = of_columns.lse[at_column, y] * (z - columns.lse[at_column, y]).exp()
    wanted = torch.where(level < 0, 0.0, of_row + of_column)
    got = s.clone()
    both = ColumnTables(columns, of_columns, M)
    channel = Channel(rows, of_rows, both)
    passes(got, source, instruction_set, N).gradients_(given(got), [channel], None, None)
    tolerance = TOLERANCE[dtype] * (1 if spread == "close" else 10)
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance * 10, atol=tolerance)
