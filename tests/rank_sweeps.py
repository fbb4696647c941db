"""Ranks of the positives by the passes of a backend, and by the reference, side by side."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from three_ways import judge
from torch import Tensor

from grainrank import LevelSource
from grainrank.batch import Batch
from grainrank.ceilings import resolve_ceilings
from grainrank.ranks.blocks import rows_of
from grainrank.ranks.compute import exact_by
from grainrank.ranks.exact import exact_ranks
from grainrank.ranks.passes import RankPasses
from grainrank.ranks.smooth import smooth_ranks
from grainrank.ranks.surrogates import Sigmoid, Surrogate, UpperBound
from grainrank.ranks.sweep import sweep_rank_gradients, sweep_smooth
from grainrank.table_sets import Needs
from grainrank.top_k.rows import as_rows

Results = dict[str, Tensor]
FIELDS = ("indptr", "indices", "level", "similarity", "above", "count", "at_least")
INTEGERS = ("indptr", "indices", "level", "count", "at_least")
TIES = ("first", "last", "optimistic", "pessimistic")
STEPS: dict[str, Surrogate] = {"sigmoid": Sigmoid(0.1), "upper_bound": UpperBound(0.1)}
WORKSPACE = 64.0


@dataclass(frozen=True)
class Case:
    """One batch. The last `memory` candidates are the memory: they have no gradient."""

    queries: Tensor
    candidates: Tensor
    levels: LevelSource
    normalize: bool = True
    memory: int = 0
    workspace_mb: float = 0.0

    def batch(self) -> Batch:
        c, memory = self.candidates, None
        if self.memory:
            c, memory = c[: -self.memory], c[-self.memory :]
        batch = Batch(
            self.queries, c, torch.ones((), dtype=torch.float64), self.levels, self.normalize,
            memory=memory, workspace_mb=self.workspace_mb,
        )  # fmt: skip
        batch = batch._replace(scale=batch.scale.to(batch.dtype))
        return resolve_ceilings(batch, "reference", columns=False)

    def to(self, dtype: torch.dtype) -> Case:
        """The same numbers in another dtype."""
        return Case(
            self.queries.to(dtype), self.candidates.to(dtype), self.levels, self.normalize,
            self.memory, self.workspace_mb,
        )  # fmt: skip


def upstream(above: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(above.shape, generator=generator, dtype=torch.float64).to(above.dtype)


def exact(case: Case, make: type[Any], ties: str) -> Results:
    batch = case.batch()
    q, c = (as_rows("", x) for x in (case.queries, case.candidates))
    found = exact_by(make(batch), q, c, batch, ties)._asdict()
    return {name: found[name] for name in FIELDS if found[name] is not None}


def reference_exact(case: Case, ties: str) -> Results:
    batch, (q, c) = case.batch(), _operands(case, case.queries, case.candidates)
    return dict(zip(FIELDS, exact_ranks(q, c, batch.levels, ties, WORKSPACE), strict=False))


def smooth(case: Case, make: type[Any], step: Surrogate) -> Results:
    """The fields of `PositiveRanks`, and the gradients of `upstream`."""
    batch = case.batch()
    passes: RankPasses = make(batch)
    *fields, slope = sweep_smooth(batch, passes, step)
    results = dict(zip(FIELDS, fields, strict=True))
    needs = Needs(True, True, False)
    d_above = upstream(results["above"])
    gradients = sweep_rank_gradients(batch, make(batch), step, d_above, slope, needs)
    dtype = case.queries.dtype
    results["d_queries"] = gradients.queries.to(dtype)
    results["d_candidates"] = gradients.candidates.to(dtype)
    return results


def reference_smooth(case: Case, step: Surrogate) -> Results:
    batch = case.batch()
    q, c = (x.clone().requires_grad_() for x in (case.queries, case.candidates))
    ranks = smooth_ranks(*_operands(case, q, c), batch.levels, step, WORKSPACE)
    results = {name: getattr(ranks, name).detach() for name in FIELDS}
    d_q, d_c = torch.autograd.grad(ranks.above, [q, c], upstream(ranks.above.detach()))
    results["d_queries"] = d_q
    results["d_candidates"] = d_c[: len(c) - case.memory]
    return results


def near_ties(case: Case, ranks: Results) -> Tensor:
    """Of which levels `[P, L + 1]` a candidate is as similar as a positive but for the roundings of
    float32: which of the two comes first is an accident there.
    """
    exact = case.to(torch.float64)
    q, c = _operands(exact, exact.queries, exact.candidates)
    similarity, level = q @ c.T, exact.batch().levels.block(0, len(q), len(c)).long()
    rows = torch.repeat_interleave(torch.arange(len(q)), ranks["indptr"].diff())
    apart = (similarity[rows] - similarity[rows, ranks["indices"], None]).abs()
    near = (apart > 0) & (apart < 1e-6) & (level[rows] >= 0)
    found = torch.zeros(ranks["above"].shape, dtype=torch.long)
    return found.scatter_add_(1, level[rows].clamp_min(0), near.long()) > 0


def assert_smooth(cases: list[Case], actual: list[Results], step: Surrogate) -> None:
    """The rule of accuracy over all cases; in float64, whose truth is the reference, to 1e-9."""
    reference = [reference_smooth(given, step) for given in cases]
    truth = [reference_smooth(given.to(torch.float64), step) for given in cases]
    if cases[0].queries.dtype != torch.float64:
        for given, a, r, t in zip(cases, actual, reference, truth, strict=True):
            accidents = near_ties(given, t)
            assert accidents.sum() <= 0.05 * accidents.numel()  # what is left is tested
            for name, results in itertools.product(("above", "at_least"), (a, r)):
                results[name] = t[name].to(results[name].dtype).where(accidents, results[name])
    for name in actual[0]:
        if name in INTEGERS or cases[0].queries.dtype == torch.float64:
            for a, t in zip(actual, truth, strict=True):
                torch.testing.assert_close(a[name], t[name], rtol=1e-9, atol=1e-11, msg=name)
        else:
            judge(name, actual, reference, [{name: (t[name], None)} for t in truth])


def _operands(case: Case, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    dtype = case.batch().dtype
    return rows_of(q, dtype, case.normalize), rows_of(c, dtype, case.normalize)
