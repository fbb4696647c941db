"""Every form of the CUDA passes, run on the simulator: the bytes and instructions of an element.

An element is a pair of the row block, or a feature of a row for the passes over embeddings. Sums of
ranks have as many as there are comparisons: one positive of each row with all of its pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from grainrank.batch import Batch
from grainrank.ranks.blocks import level_counts
from grainrank.ranks.passes import Positives
from grainrank.ranks.surrogates import Surrogate, surrogate_of
from grainrank.row_blocks import Block, Channel, ColumnTables, RowBlocks
from grainrank.table_sets import TableGradientSet, TableSet
from grainrank.testing import DTYPES, Shape, make_inputs

from .simulated_cuda import simulated

if TYPE_CHECKING:
    from grainrank.cuda_ranks import CudaRankPasses

__all__ = ["CAPABILITY", "FORMS", "SHAPE", "Cost", "Executed", "Form", "measure"]

CAPABILITY = 80
SHAPE = Shape(256, 1024, 64, 3)  # R = N: one row block, of whole tiles; L = K
LEVELS = SHAPE.K + 1
POSITIVES = 8  # of a row, for the gradient of ranks; their sums take one positive of each row


@dataclass(frozen=True)
class Executed:
    """What one kernel of a pass took."""

    instructions: float  #: of all threads, for each element
    threads: int  #: of a block
    dynamic_shared: int  #: bytes of a block: what the launcher asks for at these levels


@dataclass(frozen=True)
class Cost:
    bytes: dict[str, float]  #: for each element, of "logits read", "gradient written", and so on
    kernels: dict[str, Executed]


class Bench:
    """A row block of normalised embeddings, and tables for it."""

    def __init__(self, passes: CudaRankPasses, block: Block) -> None:
        self.passes, self.block = passes, block
        self.d_rows = torch.ones(SHAPE.N, SHAPE.D)
        self._random = torch.Generator().manual_seed(0)

    def random(self, lines: int, low: float = 0.0) -> Tensor:
        return low + torch.rand(lines, LEVELS, generator=self._random)

    def out(self, lines: int, full: bool) -> TableSet:
        like = {"dtype": torch.float32, "device": torch.device("cpu")}
        return TableSet.empty(lines, LEVELS, full=full, **like)  # type: ignore[arg-type]

    def given(self, lines: int, full: bool) -> tuple[TableSet, TableGradientSet]:
        """Tables as a loss may have them, and the gradients of all that pairs share."""
        lse = self.random(lines, 5.0)
        tables = self.out(lines, full)._replace(lse=lse)
        d_lse = self.random(lines)
        if not full:
            return tables, TableGradientSet(lse=d_lse)
        tables = tables._replace(neg_lse=lse + 1.0)
        return tables, TableGradientSet(d_lse, self.random(lines), self.random(lines))

    def tables(self, full: bool, columns: bool) -> None:
        of_columns = self.out(SHAPE.M, full) if columns else None
        self.passes.tables(self.block, 0, self.out(SHAPE.N, full), of_columns)

    def gradients(self, full: bool = False, columns: bool = False, softplus: bool = False) -> None:
        tables, d_tables = self.given(SHAPE.N, full)
        of_columns = ColumnTables(*self.given(SHAPE.M, full), SHAPE.M) if columns else None
        thresholds = None
        if softplus:
            thresholds = self.random(SHAPE.N)
            d_tables = d_tables._replace(softplus=self.random(SHAPE.N))
        self.passes.gradients_(
            self.block, [Channel(tables, d_tables, of_columns, thresholds)], None, None
        )

    def moments(self) -> None:
        """As several prefixes of normalised embeddings need them."""
        of_columns = torch.empty(SHAPE.N // self.passes.moment_rows, SHAPE.M)
        channel = Channel(*self.given(SHAPE.N, full=False))
        self.passes.gradients_(self.block, [channel], torch.empty(SHAPE.N), of_columns)

    def softplus_sums(self) -> None:
        out = self.random(SHAPE.N), self.random(SHAPE.N)
        self.passes.softplus(self.block, 0, self.random(SHAPE.N), None, *out)

    def softplus_gradient(self) -> None:
        out = self.random(SHAPE.N), self.random(SHAPE.N)
        self.passes.softplus(self.block, 0, self.random(1), self.random(1)[0], *out)

    def block_levels(self) -> None:
        self.passes.block_levels(self.block)

    def judged(self, positives: int) -> tuple[Tensor, Positives]:
        """Levels with so many positives in each row."""
        levels = torch.zeros(SHAPE.N, SHAPE.M, dtype=torch.int8)
        levels[:, :: SHAPE.M // positives] = SHAPE.K
        return levels, self.passes.positives(self.block, levels, level_counts(levels, SHAPE.K))

    def exact_ranks(self) -> None:
        self.passes.exact_ranks(self.block, *self.judged(1), "first")

    def smooth_ranks(self, step: Surrogate) -> None:
        self.passes.smooth_ranks(self.block, *self.judged(1), step)

    def rank_gradient(self, step: Surrogate) -> None:
        levels, positives = self.judged(POSITIVES)
        d_above = self.random(SHAPE.N * POSITIVES)
        self.passes.rank_gradient_(self.block, levels, positives, step, d_above, d_above.sum(dim=1))

    def norms(self) -> None:
        self.passes.norms(self.block.queries, (SHAPE.D,), torch.empty(1, SHAPE.N), None)

    def finish(self) -> None:
        norms, dots = self.random(SHAPE.N, 1.0)[:, 0].contiguous(), torch.empty(SHAPE.N)
        self.passes.finish_(self.d_rows, self.block.queries, (SHAPE.D,), norms, None, dots, None)


Run = Callable[[Bench], None]


class Form(NamedTuple):
    run: Run
    dtype: str = "fp32"  #: of the embeddings, and so of the gradient
    writes: bool = False  #: the gradient of the product
    elements: int = SHAPE.N * SHAPE.M
    logits: float = 4.0  #: bytes of them that it reads for each element


def _forms() -> dict[str, Form]:
    tables: dict[str, Run] = {
        "tables light rows": partial(Bench.tables, full=False, columns=False),
        "tables light rows+columns": partial(Bench.tables, full=False, columns=True),
        "tables all rows": partial(Bench.tables, full=True, columns=False),
        "tables all rows+columns": partial(Bench.tables, full=True, columns=True),
        "softplus sums": Bench.softplus_sums,
        "exact ranks": Bench.exact_ranks,
    }
    steps = {name.replace("_", " "): surrogate_of(name, 0.1) for name in ("sigmoid", "upper_bound")}
    for name, step in steps.items():
        tables[f"smooth ranks ({name})"] = partial(Bench.smooth_ranks, step=step)
    gradients: dict[str, Run] = {
        "gradients rows (lse)": Bench.gradients,
        "gradients rows+columns (lse)": partial(Bench.gradients, columns=True),
        "gradients all tables rows+columns": partial(Bench.gradients, full=True, columns=True),
        "gradients rows (lse, softplus)": partial(Bench.gradients, softplus=True),
        "gradients rows (lse) with moments": Bench.moments,
        "softplus with gradient": Bench.softplus_gradient,
    }
    for name, step in steps.items():
        gradients[f"smooth ranks ({name}), gradient"] = partial(Bench.rank_gradient, step=step)
    rows: dict[str, Run] = {"norms": Bench.norms, "finish": Bench.finish}
    forms = {name: Form(run) for name, run in tables.items()}
    forms["levels of a block"] = Form(Bench.block_levels, logits=0.0)
    for dtype in ("fp32", "bf16"):
        forms |= {f"{name}, {dtype}": Form(run, dtype, True) for name, run in gradients.items()}
    for dtype in ("fp32", "bf16"):
        features = Form(Bench.norms, dtype, elements=SHAPE.N * SHAPE.D)
        forms |= {f"{name}, {dtype}": features._replace(run=run) for name, run in rows.items()}
    return forms


#: By name. As in a training step, a float32 gradient is written over the logits.
FORMS = _forms()


def measure(form: Form) -> Cost:
    names: dict[int, str] = {}
    with simulated(CAPABILITY, seed=1, names=names) as device:
        from grainrank.cuda_ranks import CudaRankPasses

        inputs = make_inputs(SHAPE, DTYPES[form.dtype], seed=0)
        batch = Batch(inputs.queries, inputs.candidates, torch.tensor(20.0), inputs.levels)
        bound = torch.tensor(1.0) if form.writes else None
        rows = next(iter(RowBlocks(batch, CudaRankPasses(batch), bound)))
        device.clear()  # the norms of the embeddings
        bench = Bench(CudaRankPasses(batch), rows.blocks[0])
        block = bench.block
        assert block.shape == (SHAPE.N, SHAPE.M), block.shape
        roles = {
            "d rows": bench.d_rows,
            "rows": block.queries,
            "gradient": block.gradient,
            "logits": block.similarities,  # last: in float32 the gradient is in their memory
        }
        names.update({t.data_ptr(): role for role, t in roles.items() if t is not None})
        try:
            form.run(bench)
        except RuntimeError as error:
            raise RuntimeError(f"{error}: {device.message()}") from error
        touched = dict.fromkeys(
            (f"{name} {way}" for name in (*roles, "other") for way in ("read", "written")), 0
        )
        for name in device.names():
            role = name if name in roles else "other"
            for way, count in zip(("read", "written"), device.traffic(name), strict=True):
                touched[f"{role} {way}"] += count
        executed = device.executed()
    return Cost(
        {what: count / form.elements for what, count in touched.items() if count > 0},
        {
            name: Executed(
                round(kernel.instructions / form.elements, 3),
                kernel.threads,
                kernel.dynamic_shared,
            )
            for name, kernel in executed.items()
        },
    )
