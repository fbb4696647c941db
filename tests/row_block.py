"""One row block for the C++ passes: its similarities, its levels, and the tables of it."""

from __future__ import annotations

import torch
from torch import Tensor

from grainrank import DenseLevels, Diagonal, GrainKeys, LevelSource, SparseLevels
from grainrank.batch import Batch
from grainrank.cpu import CpuPasses
from grainrank.row_blocks import Block, Channel
from grainrank.table_sets import TableGradientSet, TableSet
from grainrank.testing import Shape, make_dense_levels, make_inputs

N, START, ROWS = 9, 2, 5  # a block in the middle of a batch of N queries
SCALE = 5.0


def source(kind: str, m: int) -> LevelSource:
    base, _, ids = kind.partition("+")
    keys = make_inputs(Shape(N, m, 4, 3), seed=m, unknown=0.2)[2:]
    levels: LevelSource = Diagonal()
    if base in ("prefix", "count"):
        levels = GrainKeys(*keys, match=base)  # type: ignore[arg-type]
    elif base.startswith("dense"):
        max_level = int(base[5:])
        levels = DenseLevels(make_dense_levels(Shape(N, m, 4), max_level, seed=m), max_level)
    if ids:
        generator = torch.Generator().manual_seed(m)
        levels = levels.exclude(
            torch.randint(7, (N,), generator=generator), torch.randint(7, (m,), generator=generator)
        )
    return levels


def few_levels(n: int, m: int) -> Tensor:
    """Levels `[n, m]` to 3, and ignored pairs; nine of ten are 0."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(-1, 4, (n, m), generator=generator)
    return levels.masked_fill_(torch.rand(n, m, generator=generator) < 0.9, 0)


def sparse(levels: Tensor) -> SparseLevels:
    """What is not 0, and some of the rest."""
    generator = torch.Generator().manual_seed(1)
    given = (levels != 0) | (torch.rand(levels.shape, generator=generator) < 0.02)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), given.sum(dim=1).cumsum(dim=0)])
    row, column = given.nonzero().unbind(dim=1)
    return SparseLevels(indptr, column, levels[row, column], levels.shape[1], max_level=3)


def block(m: int, dtype: torch.dtype, ties: bool = False) -> Tensor:
    """Similarities [ROWS, m]: a view into wider rows whose rest is NaN."""
    generator = torch.Generator().manual_seed(m)
    values = torch.randn(ROWS, m, generator=generator, dtype=torch.float64)
    memory = torch.full((ROWS + 1, m + 19), torch.nan, dtype=dtype)
    memory[:ROWS, :m] = (values * 2).round() / 2 if ties else values
    return memory[:ROWS, :m]


def passes(s: Tensor, levels: LevelSource, name: str, queries: int = N) -> CpuPasses:
    """Of a batch whose embeddings nobody reads: the passes see similarities."""
    q, c = s.new_zeros(queries, 1), s.new_zeros(s.shape[1], 1)
    return CpuPasses(Batch(q, c, torch.tensor(SCALE, dtype=s.dtype), levels), name)


def given(s: Tensor) -> Block:
    """The block of these similarities, over which the gradient is written."""
    q, c = (s.new_zeros(n, 1) for n in s.shape)
    return Block(s, s, q, c, START, 0, None, None, None)


def run_tables(s: Tensor, levels: LevelSource, name: str, full: bool = True) -> TableSet:
    out = TableSet.empty(ROWS, levels.max_level + 1, dtype=s.dtype, device=s.device, full=full)
    passes(s, levels, name).tables(given(s), 0, out, None)
    return out


def run_gradients_(
    s: Tensor, levels: LevelSource, tables: TableSet, d_tables: TableGradientSet, name: str
) -> None:
    """Writes the gradients over the similarities."""
    channel = Channel(tables, d_tables)
    passes(s, levels, name).gradients_(given(s), [channel], None, None)
