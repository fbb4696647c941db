"""`opcheck`: schemas, fakes and aliasing of the three operators, contiguous or not."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from grainrank import DenseLevels, Diagonal, GrainKeys, LevelSource
from grainrank.testing import Shape, make_dense_levels, make_inputs

SHAPE = Shape(5, 9, 4, 2)
OPS = torch.ops.grainrank
# The operators carry no gradient formula: autograd stands around them (grainrank/autograd.py).
CHECKS = ("test_schema", "test_faketensor")
TRACED = (*CHECKS, "test_aot_dispatch_dynamic")  # slow: where the arguments differ in kind


def spread(x: Tensor) -> Tensor:
    """The same values with other strides: every other column of a transposed matrix."""
    wide = torch.full((x.shape[1], 2 * x.shape[0]), 77, dtype=x.dtype)
    wide[:, ::2] = x.t()
    return wide[:, ::2].t()


def source(kind: str, strided: bool) -> LevelSource:
    inputs = make_inputs(SHAPE)
    keys = [spread(k) if strided else k for k in inputs[2:]]
    dense = make_dense_levels(SHAPE, 3)
    ids = torch.arange(20)[::2] if strided else torch.arange(10)
    return {
        "diagonal": Diagonal(),
        "prefix": GrainKeys(*keys),
        "count": GrainKeys(*keys, match="count"),
        "dense": DenseLevels(spread(dense) if strided else dense, 3),
        "ids": GrainKeys(*keys).exclude(ids[:5], ids[:9]),
    }[kind]


def batch(kind: str, dtype: torch.dtype, strided: bool, backend: str) -> tuple[Any, ...]:
    inputs = make_inputs(SHAPE, dtype)
    q, c = (spread(x) if strided else x for x in inputs[:2])
    levels = source(kind, strided)
    scale = torch.tensor(5.0, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    return (
        *(q, c, scale, list(levels.tensors), levels.kind, levels.max_level),
        *(True, backend, 0.0),
    )


NEEDS = list(itertools.product([False, True], repeat=3))  # queries, candidates, scale
STRIDED = pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])


@STRIDED
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", ["diagonal", "prefix", "count", "dense", "ids"])
def test_level_tables(kind: str, full: bool, strided: bool, backend: str) -> None:
    args = (*batch(kind, torch.float32, strided, backend), full)
    opcheck(OPS.level_tables.default, args, test_utils=TRACED if full else CHECKS)


@STRIDED
@pytest.mark.parametrize("needs", NEEDS, ids=lambda n: "".join("NY"[x] for x in n))
@pytest.mark.parametrize("full", [False, True])
def test_level_tables_bwd(full: bool, needs: tuple[bool, ...], strided: bool, backend: str) -> None:
    args = batch("prefix", torch.float32, strided, backend)
    tables = OPS.level_tables.default(*args, full)
    d = torch.ones(SHAPE.N, SHAPE.K + 1)
    d = spread(d) if strided else d
    d_tables = (d, d, None, d, d) if full else (d, None, None, None, None)
    checks = TRACED if all(needs) else CHECKS
    opcheck(OPS.level_tables_bwd.default, (*args, *tables, *d_tables, *needs), test_utils=checks)


@STRIDED
@pytest.mark.parametrize("needs", NEEDS, ids=lambda n: "".join("NY"[x] for x in n))
@pytest.mark.parametrize("full", [False, True])
def test_multi_level_nce(full: bool, needs: tuple[bool, ...], strided: bool, backend: str) -> None:
    args = batch("dense", torch.float32, strided, backend)
    head = (torch.ones(3), "exact", "lower", full)
    checks = TRACED if all(needs) else CHECKS
    opcheck(OPS.multi_level_nce.default, (*args, *head, *needs), test_utils=checks)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_of_the_results(dtype: torch.dtype, backend: str) -> None:
    """Tables and gradients come in the accumulation dtype, in the fakes too."""
    args = batch("prefix", dtype, False, backend)
    weights = torch.ones(SHAPE.K, dtype=args[2].dtype)
    nce = (*args, weights, "at_least", "unrelated", True, True, True, True)
    opcheck(OPS.multi_level_nce.default, nce, test_utils=CHECKS)
    opcheck(OPS.level_tables.default, (*args, True), test_utils=CHECKS)
    tables = OPS.level_tables.default(*args, True)
    assert [t.dtype for t in tables] == [
        *(args[2].dtype if i not in (3, 6, 7) else torch.int64 for i in range(8))
    ]


@STRIDED
def test_strides_change_nothing(strided: bool, backend: str) -> None:
    """Against a contiguous copy of the same inputs."""
    plain = batch("ids", torch.float32, False, backend)
    other = batch("ids", torch.float32, strided, backend)
    head = (torch.ones(2), "exact", "lower", True, True, True, True)
    other = (*other[:3], [t.clone() for t in other[3]], *other[4:])
    for a, b in zip(
        OPS.multi_level_nce.default(*plain[:3], other[3], *plain[4:], *head),
        OPS.multi_level_nce.default(*other, *head),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
