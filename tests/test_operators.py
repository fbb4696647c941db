"""`opcheck`: schemas, fakes and aliasing of the operators, contiguous or not."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
import torch
from three_ways import accumulation
from torch import Tensor
from torch.library import opcheck

from grainrank import (
    DenseLevels,
    Diagonal,
    GrainKeys,
    LevelSource,
    SimilarityBands,
    SparseLevels,
    ops,
)
from grainrank.batch import Batch
from grainrank.levels import Ceiled
from grainrank.testing import Shape, make_dense_levels, make_inputs

SHAPE = Shape(5, 9, 4, 2)
OPS = torch.ops.grainrank
KINDS = ["diagonal", "prefix", "count", "dense", "ids", "sparse", "bands", "union"]
KINDS += ["ceiled", "ceiled reference"]
# The operators carry no gradient formula: autograd stands around them (grainrank/autograd.py).
CHECKS = ("test_schema", "test_faketensor")
# Slow: where the arguments differ in kind. It compares all of the results, but of the memory that
# is kept not all is written.
TRACED = (*CHECKS, "test_aot_dispatch_dynamic")


def spread(x: Tensor) -> Tensor:
    """The same values with other strides: every other column of a transposed matrix."""
    wide = torch.full((x.shape[1], 2 * x.shape[0]), 77, dtype=x.dtype)
    wide[:, ::2] = x.t()
    return wide[:, ::2].t()


def source(kind: str, strided: bool) -> LevelSource:
    inputs = make_inputs(SHAPE)
    n, m = SHAPE.N, SHAPE.M
    keys = [spread(k) if strided else k for k in inputs[2:]]
    dense = make_dense_levels(SHAPE, 3)
    ids = torch.arange(20)[::2] if strided else torch.arange(10)
    bands = SimilarityBands(inputs.queries, inputs.candidates, torch.rand(n, 2).sort(dim=1).values)
    sparse = SparseLevels.from_qrels(range(n), range(m), {(0, 3): 2, (4, 1): 1})
    sources: dict[str, LevelSource] = {
        "diagonal": Diagonal(),
        "prefix": GrainKeys(*keys),
        "count": GrainKeys(*keys, match="count"),
        "dense": DenseLevels(spread(dense) if strided else dense, 3),
        "ids": GrainKeys(*keys).exclude(ids[:5], ids[:9]),
        "sparse": sparse,
        "bands": bands,
        "union": bands.exclude(ids[:5], ids[:9]) | sparse | GrainKeys(*keys),
        "ceiled": Ceiled(sparse, torch.zeros(1, n), torch.zeros(1, m), None, (ids[:5], ids[:9])),
        "ceiled reference": Ceiled(Diagonal(), torch.zeros(1, n), None, bands.tensors[:2], None),
    }
    return sources[kind]


class Call(NamedTuple):
    """What differs between the batches."""

    kind: str = "prefix"
    dtype: torch.dtype = torch.float32
    strided: bool = False
    views: bool = False  # prefixes, factors and a memory
    circle: float | None = None


def batch(call: Call, backend: str) -> tuple[Any, ...]:
    inputs = make_inputs(SHAPE, call.dtype)
    m = SHAPE.M - 2 if call.views else SHAPE.M
    q, c, memory = inputs.queries, inputs.candidates[:m], inputs.candidates[m:]
    q, c, memory = (spread(x) if call.strided else x for x in (q, c, memory))
    levels = source(call.kind, call.strided)
    scale = torch.tensor(5.0, dtype=accumulation(call.dtype))
    factors = torch.rand(2, levels.max_level + 1, dtype=scale.dtype) + 0.5
    return ops.arguments(
        Batch(
            q,
            c,
            scale,
            levels,
            factors=(spread(factors) if call.strided else factors) if call.views else None,
            memory=memory if call.views else None,
            dims=(2, 4) if call.views else (),
            circle=call.circle,
        ),
        backend,
    )


NEEDS = list(itertools.product([False, True], repeat=4))  # queries, candidates, scale, factors
STRIDED = pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
VIEWS = pytest.mark.parametrize("views", [False, True], ids=["one", "views"])


@STRIDED
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_level_tables(kind: str, full: bool, strided: bool, backend: str) -> None:
    args = batch(Call(kind, strided=strided), backend)
    checks = TRACED if full and kind == "prefix" else CHECKS
    keep = checks is not TRACED and not strided
    opcheck(OPS.level_tables.default, (*args, full, False, "", keep), test_utils=checks)


@VIEWS
@pytest.mark.parametrize("softplus", ["", "lower", "unrelated"])
@pytest.mark.parametrize("columns", [False, True])
def test_level_tables_of_columns(columns: bool, softplus: str, views: bool, backend: str) -> None:
    args = batch(Call(views=views), backend)
    checks = TRACED if columns else CHECKS
    opcheck(OPS.level_tables.default, (*args, True, columns, softplus, False), test_utils=checks)
    opcheck(OPS.level_tables.default, (*args, True, columns, softplus, True), test_utils=CHECKS)


@STRIDED
@VIEWS
@pytest.mark.parametrize("needs", NEEDS, ids=lambda n: "".join("NY"[x] for x in n))
@pytest.mark.parametrize("full", [False, True])
def test_level_tables_bwd(
    full: bool, needs: tuple[bool, ...], views: bool, strided: bool, backend: str
) -> None:
    args = batch(Call(strided=strided, views=views), backend)
    *tables, kept = OPS.level_tables.default(
        *args, full, full, "lower" if full else "", not strided
    )
    rows, columns = list(tables[:10]), list(tables[10:])

    def ones(like: Tensor, *there: bool) -> list[Tensor | None]:
        d = torch.ones_like(like)
        if strided and not views:
            d = spread(d[0])[None]
        return [d if x else None for x in there]

    d_rows = ones(rows[0], True, full, False, full, full, full)
    d_columns = ones(columns[0], True, True, True, True, True, False) if full else []
    args = (*args, rows, d_rows, columns if full else [], d_columns)
    args = (*args, "lower" if full else "", kept, list(needs))
    opcheck(OPS.level_tables_bwd.default, args, test_utils=TRACED if all(needs) else CHECKS)


@STRIDED
@VIEWS
@pytest.mark.parametrize("needs", NEEDS, ids=lambda n: "".join("NY"[x] for x in n))
def test_multi_level_nce(needs: tuple[bool, ...], views: bool, strided: bool, backend: str) -> None:
    args = batch(Call("dense", strided=strided, views=views), backend)
    head = (torch.ones(4 if views else 1, 3), "exact", "lower", list(needs))
    checks = TRACED if all(needs) else CHECKS
    opcheck(OPS.multi_level_nce.default, (*args, *head), test_utils=checks)


@STRIDED
@pytest.mark.parametrize("needs", NEEDS[::2], ids=lambda n: "".join("NY"[x] for x in n))
def test_sigmoid_loss(needs: tuple[bool, ...], strided: bool, backend: str) -> None:
    args = batch(Call(strided=strided), backend)
    head = (torch.tensor(-2.0), torch.ones(3), list(needs))
    checks = TRACED if needs[0] else CHECKS
    opcheck(OPS.sigmoid_loss.default, (*args, *head), test_utils=checks)


def test_circle(backend: str) -> None:
    args = batch(Call(circle=0.25), backend)
    opcheck(OPS.level_tables.default, (*args, True, True, "", False), test_utils=TRACED)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_of_the_results(dtype: torch.dtype, backend: str) -> None:
    """Tables and gradients come in the accumulation dtype, in the fakes too."""
    args = batch(Call(dtype=dtype), backend)
    scale = args[2]
    weights = torch.ones(1, SHAPE.K, dtype=scale.dtype)
    nce = (*args, weights, "at_least", "unrelated", [True] * 4)
    opcheck(OPS.multi_level_nce.default, nce, test_utils=CHECKS)
    sigmoid = (*args, torch.zeros_like(scale), torch.ones_like(weights[0, :1]).expand(3))
    opcheck(OPS.sigmoid_loss.default, (*sigmoid, [True] * 4), test_utils=CHECKS)
    opcheck(OPS.level_tables.default, (*args, True, True, "lower", True), test_utils=CHECKS)
    *tables, kept = OPS.level_tables.default(*args, True, True, "lower", True)
    assert kept.dtype == scale.dtype
    integers = (3, 6, 7)
    assert [t.dtype for t in tables] == [
        torch.int64 if i in integers or i - 10 in integers else scale.dtype for i in range(18)
    ]


@STRIDED
def test_strides_change_nothing(strided: bool, backend: str) -> None:
    """Against a contiguous copy of the same inputs."""
    plain = batch(Call("ids"), backend)
    other = batch(Call("ids", strided=strided), backend)
    head = (torch.ones(1, 2), "exact", "lower", [True] * 4)
    copies = [t.clone() for t in other[5]]
    for a, b in zip(
        OPS.multi_level_nce.default(*plain[:5], copies, *plain[6:], *head),
        OPS.multi_level_nce.default(*other[:5], copies, *other[6:], *head),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
