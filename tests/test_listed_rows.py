"""Rows whose pairs of other levels than 0 are few: the C++ lists these. The same pairs as a matrix
of levels, which it reads pair by pair, are what they are compared with.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from grainrank import DenseLevels, Diagonal, GrainKeys, LevelSource
from grainrank.table_sets import TableGradientSet
from grainrank.testing import Shape, make_inputs

pytest.importorskip("grainrank.cpu")

from row_block import ROWS, START, N, block, few_levels, run_gradients_, run_tables, sparse

M = 2500
TOLERANCE = {torch.float32: 2e-6, torch.float64: 2e-14}  # of the largest, for logits below 20


def listed(kind: str) -> LevelSource:
    query_keys, candidate_keys = make_inputs(Shape(N, M, 4, 3), seed=3, unknown=0.2)[2:]
    if kind == "diagonal":
        return Diagonal()
    if kind == "keys":
        # Half of the candidates share the first key of the third row: too many to be listed.
        candidate_keys[: M // 2, 0] = query_keys[START + 2, 0] = 999
        query_keys[START + 1, 0] = -1
        return GrainKeys(query_keys, candidate_keys)
    levels = few_levels(N, M)
    levels[START] = 0
    return sparse(levels)


def dense(source: LevelSource) -> LevelSource:
    return DenseLevels(source.block(0, N, M), source.max_level)


@pytest.fixture(params=["diagonal", "keys", "sparse"])
def sources(request: pytest.FixtureRequest) -> tuple[LevelSource, LevelSource]:
    source = listed(request.param)
    return source, dense(source)


def spread(s: Tensor) -> Tensor:
    """The listed pairs of a row far above or below the others, and a chunk above all before."""
    s[1, ::7] += 30
    s[3, 1500:] += 50
    return s


@pytest.mark.parametrize("apart", [False, True], ids=["close", "apart"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_same_as_from_a_matrix(
    sources: tuple[LevelSource, LevelSource],
    dtype: torch.dtype,
    apart: bool,
    instruction_set: str,
) -> None:
    s = block(M, dtype)
    s = spread(s) if apart else s
    before = s.clone()
    got, expected = (run_tables(s, x, instruction_set, full=False) for x in sources)
    assert torch.equal(s, before)  # what is taken out is put back
    assert torch.equal(got.count, expected.count)
    tolerance = TOLERANCE[dtype] * (20 if apart else 1)
    for name in ("lse", "total"):
        a, b = getattr(got, name), getattr(expected, name)
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * 500, msg=name)

    d = TableGradientSet(lse=torch.rand(got.lse.shape).to(dtype))
    gradients = []
    for source in sources:
        gradients.append(s.clone())
        run_gradients_(gradients[-1], source, expected, d, instruction_set)
    torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_a_number_that_is_none_stays_in_its_level(
    sources: tuple[LevelSource, LevelSource], value: float, instruction_set: str
) -> None:
    s = block(M, torch.float32)
    level = sources[0].block(START, START + ROWS, M)
    row = int((level > 0).any(dim=1).nonzero()[0])
    positive = int((level[row] > 0).nonzero()[0])
    negative = int((level[row] == 0).nonzero()[-1])
    for column in (positive, negative):
        given = s.clone()
        given[row, column] = value
        got, expected = (run_tables(given, x, instruction_set, full=False) for x in sources)
        here = int(level[row, column])
        assert not bool(got.lse[row, here].isfinite())
        there = torch.ones_like(got.lse, dtype=torch.bool)
        there[row, here] = False
        torch.testing.assert_close(got.lse[there], expected.lse[there], rtol=2e-6, atol=1e-3)
