"""Runs the cases on the ranks, and on one process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from ranks.batches import part_of, slices, whole_batch
from ranks.cases import CASES, Leaves, leaves, weights
from torch import Tensor

Results = dict[str, Tensor]


class Run(NamedTuple):
    """A case for one draw of the inputs."""

    case: str
    layout: str
    transport: str
    seed: int
    dtype: torch.dtype = torch.float32
    backend: str = "auto"


def _gradients(x: Leaves) -> Results:
    given = {
        "d_queries": x.queries,
        "d_candidates": x.candidates,
        "d_scale": x.scale,
        "d_bias": x.bias,
        "d_numbers": x.numbers,
    }
    return {name: leaf.grad for name, leaf in given.items() if leaf.grad is not None}


def on_rank(rank: int, world: int, runs: list[Run]) -> list[Results]:
    """A rank's results."""
    results = []
    for name, layout, transport, seed, dtype, backend in runs:
        case = CASES[name]
        whole = whole_batch(layout, world, dtype, seed, case.block)
        part = part_of(whole, layout, world, rank)
        x = leaves(part)
        where = {"group": dist.group.WORLD, "transport": transport, "backend": backend}
        loss = case.step(x, part, where)
        rows = slices(layout, world)[0][rank]
        if loss.dim() > 0:
            loss.backward(weights(len(whole.queries), loss.dtype)[rows])
        else:
            loss.backward(torch.tensor(1.5, dtype=loss.dtype))
        results.append({"loss": loss.detach(), **_gradients(x)})
    return results


def on_one_process(run: Run, world: int, backend: str, dtype: torch.dtype) -> Results:
    """The whole batch, in `dtype` from values that the run's dtype holds."""
    name, layout, _, seed, given, _ = run
    case = CASES[name]
    whole = whole_batch(layout, world, given, seed, case.block)
    order = torch.arange(len(whole.candidates))
    if case.pairs:
        order = pairs_first(layout, world)
    whole = replace(
        whole,
        queries=whole.queries.to(dtype),
        candidates=whole.candidates[order].to(dtype),
        candidate_keys=whole.candidate_keys[order],
        candidate_reference=whole.candidate_reference[order],
        memory=whole.memory.to(dtype),
    )
    x = leaves(whole)
    loss = case.step(x, whole, {"backend": backend})
    upstream = weights(len(whole.queries), loss.dtype) if loss.dim() > 0 else None
    loss.backward(torch.tensor(1.5, dtype=loss.dtype) if upstream is None else upstream)
    found = {"loss": loss.detach(), **_gradients(x)}
    found["d_candidates"] = found["d_candidates"][order.argsort()]
    return found


def pairs_first(layout: str, world: int) -> Tensor:
    """The candidates of the queries, in their order, then the others."""
    rows, columns, _ = slices(layout, world)
    first, rest = [], []
    for r, c in zip(rows, columns, strict=True):
        end = c.start + r.stop - r.start
        first += range(c.start, end)
        rest += range(end, c.stop)
    return torch.tensor(first + rest)


def together(run: Run, world: int, ranks: list[Results]) -> Results:
    """The ranks' results as one process has them."""
    local = CASES[run.case].local
    losses = [of_rank["loss"] for of_rank in ranks]
    found: Results = {}
    if losses[0].dim() > 0:
        found["loss"] = torch.cat(losses)
    elif local:
        found["loss"] = torch.stack(losses).sum()
    else:
        # The same bits everywhere.
        assert all(torch.equal(loss, losses[0]) for loss in losses)
        found["loss"] = losses[0]
    for name in ranks[0]:
        parts: list[Any] = [of_rank[name] for of_rank in ranks]
        if name in ("d_queries", "d_candidates"):
            # Of a loss that every rank has, each rank's gradient is W times the true one.
            found[name] = torch.cat(parts) / (1 if local else world)
        elif name != "loss":
            assert all(torch.equal(part, parts[0]) for part in parts)
            # Of each rank's own objective, the mean.
            found[name] = parts[0] * (world if local else 1)
    return found
