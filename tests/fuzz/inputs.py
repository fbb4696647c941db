"""Hostile inputs: shapes, memory layouts, embeddings and level sources, drawn by hypothesis.

A case is a few choices and a seed; the tensors are made from these, so that hypothesis shrinks the
choices and a failure prints as a line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from grainrank import DenseLevels, GrainKeys, LevelSource, SimilarityBands, SparseLevels

# Around the widths of vectors (4 to 16), of strips and lanes (64), of tiles (12 to 48), and primes.
_SMALL = (1, 2, 3, 5, 7, 8, 9, 13, 15, 16, 17, 31, 33, 47, 49, 63, 64, 65, 67)
ROWS = st.sampled_from((1, 1, 2, 3, 4, 5, 7, 8, 9, 23, 24, 25, 63, 64, 65, 67))
# And around the chunks of columns (512, 1008, 1024).
COLUMNS = st.sampled_from((*_SMALL, *_SMALL, 511, 513, 1007, 1009, 1023, 1024, 1025, 1031))
FEATURES = st.sampled_from((1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 65))
SEEDS = st.integers(0, 2**31 - 1)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- Embeddings.

KINDS = ("normal", "normal", "normal", "integers", "equal", "zeros", "huge", "tiny", "nan", "inf")
LAYOUTS = (
    "contiguous", "transposed", "every other feature", "every other row", "misaligned",
    "columns of a wider one", "negated view", "one row", "one feature",
)  # fmt: skip


def embeddings(rows: int, features: int, kind: str, dtype: torch.dtype, seed: int) -> Tensor:
    """`[rows, features]`, the same numbers in every dtype but for their rounding."""
    g = generator(seed)
    x = torch.randn(rows, features, dtype=torch.float64, generator=g)
    x += 0.5 * x.sign()  # the gradient of a norm near 0 is a matter of luck
    if kind == "integers":  # their products are exact, and often equal
        x = torch.randint(-2, 3, (rows, features), generator=g).double()
    elif kind == "equal":
        x = torch.ones_like(x)
    elif kind == "zeros":
        x[torch.rand(rows, generator=g) < 0.5] = 0
    elif kind in ("huge", "tiny"):
        x *= 1e3 if kind == "huge" else 1e-3
    elif kind in ("nan", "inf") and x.numel() > 0:
        at = int(torch.randint(x.numel(), (), generator=g))
        x.view(-1)[at] = torch.nan if kind == "nan" else torch.inf
    return x.to(dtype)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers elsewhere in memory, but for the last two layouts, whose strides are 0."""
    rows, features = x.shape
    if x.numel() == 0:
        return x
    if layout == "transposed":
        return x.t().contiguous().t()
    if layout == "every other feature":
        return torch.stack([x, torch.full_like(x, torch.nan)], dim=2).view(rows, -1)[:, ::2]
    if layout == "every other row":
        return torch.stack([x, torch.full_like(x, torch.nan)], dim=1).view(-1, features)[::2]
    if layout == "misaligned":
        return torch.cat([x.new_full((1,), torch.nan), x.reshape(-1)])[1:].view(rows, features)
    if layout == "columns of a wider one":
        beside = x.new_full((rows, 1), torch.nan)
        return torch.cat([beside, x, beside, beside], dim=1)[:, 1 : 1 + features]
    if layout == "negated view" and x.dtype in (torch.float32, torch.float64):
        return torch.complex(x, -x).conj().imag
    if layout == "one row":
        return x[:1].expand(rows, features)
    if layout == "one feature":
        return x[:, :1].expand(rows, features)
    return x


# ---- Level sources.

_KEYS = (0, 1, 2, -1, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63 - 1, -(2**63))
_SOURCES = ("none", "keys", "keys", "dense", "sparse", "sparse", "bands")
_WRONG = (
    "unsorted", "duplicate", "column M", "column -1", "column 2^31", "column 2^63 - 1",
    "negative indptr", "falling indptr", "late indptr", "short indptr", "long indptr",
    "empty indptr", "one level more", "level 16", "level -2", "int32", "uint8",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A leaf of a level source, and what is wrong with it."""

    name: str
    seed: int
    max_level: int
    match: str
    dtype: torch.dtype
    transposed: bool  # of keys and matrices: column-major
    given_level: int | None  # max_level=
    low: int  # of dense levels
    high: int
    wrong: str  # of compressed rows
    thresholds: tuple[float, ...]
    own_thresholds: bool
    extra: tuple[int, int]  # rows and columns more than there are


@dataclass(frozen=True)
class Levels:
    """Leaves, and what is done with them."""

    leaves: tuple[Source, ...]
    exclude: bool
    margin: float | None
    relative: bool
    reference: bool
    curated: bool


_INF = float("inf")
_THRESHOLDS = ((0.5,), (-0.5, 1.5), (-_INF, 0.5, _INF), (0.5, 0.5, 1.5), (0.5, 2.5, float("nan")))


def mostly(draw: st.DrawFn, usual: tuple[Any, ...], wrong: tuple[Any, ...]) -> Any:
    """One of the first, or now and then of the others, most of which an error is due to."""
    return draw(st.sampled_from(wrong if draw(st.integers(0, 29)) == 17 else usual))


@st.composite
def sources(draw: st.DrawFn) -> Source:
    return Source(
        name=draw(st.sampled_from(_SOURCES)),
        seed=draw(SEEDS),
        max_level=mostly(draw, (1, 2, 3, 3, 4, 5, 14, 15), (0, 16)),
        match=mostly(draw, ("prefix", "count"), ("suffix",)),
        dtype=draw(st.sampled_from(INTEGERS)),
        transposed=draw(st.booleans()),
        given_level=mostly(draw, (None, None, 15), (0, 3, 16)),
        low=mostly(draw, (-1, 0), (-2, -128)),
        high=mostly(draw, (1, 2, 3, 3, 4, 15), (16, 120)),
        wrong=mostly(draw, ("unsorted", "int32", "uint8"), _WRONG),
        thresholds=mostly(draw, _THRESHOLDS, ((), (1.0, 0.0), (float("nan"),) * 2, (0.5,) * 16)),
        own_thresholds=draw(st.booleans()),
        extra=mostly(draw, ((0, 0),), ((1, 0), (0, 1), (-1, 0), (0, -1))),
    )


@st.composite
def levels(draw: st.DrawFn) -> Levels:
    return Levels(
        leaves=tuple(draw(st.lists(sources(), min_size=1, max_size=2))),
        exclude=draw(st.sampled_from((False, False, True))),
        margin=mostly(draw, (None, None, None, 0.05, 0.25), (-0.1, 1.0, _INF, float("nan"))),
        relative=draw(st.booleans()),
        reference=draw(st.booleans()),
        curated=draw(st.booleans()),
    )


def make_levels(spec: Levels, rows: int, columns: int) -> LevelSource | None:
    """Raises what the sources raise."""
    made = [_make_source(leaf, rows, columns) for leaf in spec.leaves]
    source = made[0]
    for other in made[1:]:
        source = (source or other) if source is None or other is None else source | other
    if source is None:
        return None
    g = generator(spec.leaves[0].seed + 1)

    def ids() -> tuple[Tensor, Tensor]:
        values = torch.tensor(_KEYS)
        both = values[torch.randint(len(_KEYS), (rows + columns,), generator=g)]
        return both[:rows], both[rows:]

    if spec.exclude:
        source = source.exclude(*ids())
    if spec.margin is None:
        return source
    reference = torch.randn(rows + columns, 3, generator=g)
    return source.false_negative_margin(
        spec.margin,
        relative=spec.relative,
        reference=(reference[:rows], reference[rows:]) if spec.reference else None,
        curated=ids() if spec.curated else None,
    )


def _make_source(spec: Source, rows: int, columns: int) -> LevelSource | None:
    n, m = max(rows + spec.extra[0], 0), max(columns + spec.extra[1], 0)
    g = generator(spec.seed)
    if spec.name == "keys":
        return GrainKeys(
            *(_keys(spec, size, g) for size in (n, m)),
            match=spec.match,  # type: ignore[arg-type]
        )
    if spec.name == "dense":
        x = torch.randint(spec.low, spec.high + 1, (n, m), generator=g)
        x[torch.rand(n, m, generator=g) < 0.7] = 0
        x = x.to(spec.dtype)
        return DenseLevels(x.t().contiguous().t() if spec.transposed else x, spec.given_level)
    if spec.name == "sparse":
        return SparseLevels(*_compressed_rows(spec, n, m, g))
    if spec.name == "bands":
        q, c = (torch.randint(-2, 3, (size, 2), generator=g).float() for size in (n, m))
        thresholds: Any = spec.thresholds
        if spec.own_thresholds:
            thresholds = torch.tensor(spec.thresholds).repeat(n, 1)
        return SimilarityBands(q, c, thresholds, normalize=False)
    return None


def _keys(spec: Source, rows: int, g: torch.Generator) -> Tensor:
    known = torch.tensor([k for k in _KEYS if _fits(k, spec.dtype)])
    # Most of them few and small, so that prefixes match.
    at = torch.randint(len(known), (rows, spec.max_level), generator=g)
    at[torch.rand(rows, spec.max_level, generator=g) < 0.8] = 0
    x = known[at].to(spec.dtype)
    return x.t().contiguous().t() if spec.transposed else x


def _fits(value: int, dtype: torch.dtype) -> bool:
    return torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max


def _compressed_rows(spec: Source, n: int, m: int, g: torch.Generator) -> tuple[Any, ...]:
    """`indptr`, `indices`, `levels`, M and L of random entries, then made wrong."""
    there = torch.rand(n, m, generator=g) < min(1.0, 4 / max(m, 1))
    row, column = there.nonzero(as_tuple=True)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), there.sum(dim=1).cumsum(dim=0)])
    level = torch.randint(-1, min(spec.max_level, 15) + 1, (len(row),), generator=g)
    order = (row + torch.rand(len(row), generator=g)).argsort()  # any order within a row
    column, level = column[order], level[order]
    last = len(row) - 1
    if last >= 0:
        at = int(torch.randint(last + 1, (), generator=g))
        columns = {"M": m, "-1": -1, "2^31": 2**31, "2^63 - 1": 2**63 - 1}
        if spec.wrong.startswith("column "):
            column[at] = columns[spec.wrong.removeprefix("column ")]
        if spec.wrong in ("level 16", "level -2"):
            level[at] = 16 if spec.wrong == "level 16" else -2
        if spec.wrong == "duplicate":
            column, level = torch.cat([column, column[-1:]]), torch.cat([level, level[-1:]])
            indptr[int(row[-1]) + 1 :] += 1
    if spec.wrong == "one level more":
        level = torch.cat([level, level.new_zeros(1)])
    if spec.wrong == "negative indptr":
        indptr[len(indptr) // 2] = -1
    if spec.wrong == "falling indptr":
        indptr = indptr.flip(dims=(0,))
    if spec.wrong == "late indptr":
        indptr += 1
    if spec.wrong == "short indptr":
        indptr = indptr[:-1]
    if spec.wrong == "long indptr":
        indptr = torch.cat([indptr, indptr[-1:]])
    if spec.wrong == "empty indptr":
        indptr = indptr[:0]
    if spec.wrong == "int32":
        indptr, column, level = (x.to(torch.int32) for x in (indptr, column, level))
    if spec.wrong == "uint8" and (last < 0 or int(level.min()) >= 0):
        level = level.to(torch.uint8)
    return indptr, column, level, m, spec.given_level
