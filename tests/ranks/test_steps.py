"""What `return_stats` reports, in which order a rank computes and waits, and torch.compile."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from ranks import processes
from ranks.batches import D, Data, part_of, slices, whole_batch
from torch import Tensor

from grainrank import (
    GrainKeys,
    LevelStatistics,
    LossStatistics,
    cpu,
    level_statistics,
    multi_level_ranking_loss,
)
from grainrank.distributed import shards
from grainrank.distributed.collectives import Scatter

WORLD, LAYOUT = 3, "empty"
EVEN_COLUMNS = 6


def _loss(data: Data, **options: Any) -> Any:
    levels = GrainKeys(data.query_keys, data.candidate_keys)
    q, c = (x.clone().requires_grad_() for x in (data.queries, data.candidates))
    return multi_level_ranking_loss(q, c, levels, temperature=0.2, **options)


def _statistics(group: Any, data: Data) -> dict[str, LossStatistics]:
    return {
        direction: _loss(data, direction=direction, return_stats=True, group=group)[1]
        for direction in ("query_to_candidate", "candidate_to_query", "symmetric")
    }


@contextlib.contextmanager
def _logged(log: list[str]) -> Iterator[None]:
    """Products with their columns, the others' arrival, and gradients that leave."""
    product, wait, start = cpu.product_, shards.Arrival.wait, Scatter.start

    def logged_product(out: Tensor, a: Tensor, b: Tensor, add: Tensor | None = None) -> None:
        log.append(f"product of {b.shape[1]} columns")
        product(out, a, b, add)

    def logged_wait(self: Any) -> None:
        log.append("wait")
        wait(self)

    def logged_start(self: Any) -> None:
        log.append("gradients leave")
        start(self)

    with (
        mock.patch.object(cpu, "product_", logged_product),
        mock.patch.object(shards.Arrival, "wait", logged_wait),
        mock.patch.object(Scatter, "start", logged_start),
    ):
        yield


def _order(direction: str, data: Data) -> dict[str, list[str]]:
    logs: dict[str, list[str]] = {"forward": [], "backward": []}
    with _logged(logs["forward"]):
        loss = _loss(data, direction=direction, group=dist.group.WORLD)
    with _logged(logs["backward"]):
        loss.backward()
    # Keys are waited for at once.
    log = logs["forward"]
    logs["forward"] = log[next(i for i, entry in enumerate(log) if "product" in entry) :]
    return logs


def _tables(group: Any, data: Data, **options: Any) -> list[Tensor]:
    """Of similarities with many ties, with a memory: the rows' and the columns' tables."""
    q, c, memory = ((4 * x).round() for x in (data.queries, data.candidates, data.memory))
    keys = torch.cat([data.candidate_keys, data.memory_keys])
    sides = level_statistics(
        q[:, :3].sign(), c[:, :3].sign(), GrainKeys(data.query_keys, keys), temperature=1.0,
        memory=memory[:, :3].sign(), direction="symmetric", normalize=False, group=group, **options,
    )  # fmt: skip
    return [x for side in sides for x in side if x is not None]


def _compiled(data: Data) -> list[Tensor]:
    """A step whose encoders are compiled with the loss in between; and the same without."""
    weight = torch.randn(D, 5, generator=torch.Generator().manual_seed(0))

    def step(q: Tensor, c: Tensor, w: Tensor) -> Tensor:
        levels = GrainKeys(data.query_keys, data.candidate_keys)
        loss: Tensor = multi_level_ranking_loss(
            q @ w, c @ w, levels, temperature=0.2, group=dist.group.WORLD
        )
        return 2 * loss

    # Dynamo (torch 2.13) looks at it itself, where a graph ends.
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
    found = []
    for function in (step, torch.compile(step, backend="aot_eager")):
        w = weight.to(data.queries.dtype).requires_grad_()
        loss = function(data.queries, data.candidates, w)
        loss.backward()
        assert w.grad is not None
        found += [loss.detach(), w.grad]
    return found


def on_rank(rank: int, world: int) -> dict[str, Any]:
    whole = whole_batch(LAYOUT, world, torch.float64, 0, block=False)
    part = part_of(whole, LAYOUT, world, rank)
    even = part_of(whole_batch("even", world, torch.float32, 0, False), "even", world, rank)
    return {
        "statistics": _statistics(dist.group.WORLD, part),
        "one direction": _order("query_to_candidate", even),
        "symmetric": _order("symmetric", even),
        "compiled": _compiled(even),
        "tables": {t: _tables(dist.group.WORLD, part, transport=t) for t in ("gather", "ring")},
    }


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return processes.run(WORLD, on_rank, tmp_path_factory.mktemp("ranks"))


def test_statistics_are_those_of_the_whole_batch(of_ranks: list[dict[str, Any]]) -> None:
    whole = whole_batch(LAYOUT, WORLD, torch.float64, 0, block=False)
    expected = _statistics(None, whole)
    for of_rank in of_ranks:
        for direction, statistics in of_rank["statistics"].items():
            for a, b in zip(statistics, expected[direction], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("transport", ["gather", "ring"])
def test_tables_are_those_of_the_whole_batch(
    transport: str, of_ranks: list[dict[str, Any]]
) -> None:
    """Columns are numbered as there, and of equal extremes the first counts."""
    expected = _tables(None, whole_batch(LAYOUT, WORLD, torch.float64, 0, block=False))
    of_each = [of_rank["tables"][transport] for of_rank in of_ranks]
    found = [torch.cat(parts) for parts in zip(*of_each, strict=True)]
    names = [name for name in LevelStatistics._fields if name != "softplus"]
    highest, at = expected[names.index("highest")], expected[names.index("highest_at")]
    assert len(highest.unique()) < len(at.unique())  # ties
    for name, a, b in zip(2 * names, found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_the_own_columns_come_before_the_others_arrive(of_ranks: list[dict[str, Any]]) -> None:
    assert slices("even", WORLD)[1][0].stop == EVEN_COLUMNS
    for of_rank in of_ranks:
        for name in ("one direction", "symmetric"):
            forward = of_rank[name]["forward"]
            assert forward[:2] == [f"product of {EVEN_COLUMNS} columns", "wait"]
            assert any("product" in entry for entry in forward[2:])


def test_gradients_travel_while_the_own_ones_are_computed(of_ranks: list[dict[str, Any]]) -> None:
    """Of one direction they are ready when the forward ends, and travel until the backward."""
    for of_rank in of_ranks:
        one = of_rank["one direction"]
        assert "gradients leave" in one["forward"]
        assert not any("product" in entry or "leave" in entry for entry in one["backward"])
        backward = of_rank["symmetric"]["backward"]
        after = backward[backward.index("gradients leave") :]
        assert f"product of {EVEN_COLUMNS} columns" in after


def test_the_graph_ends_before_the_loss(of_ranks: list[dict[str, Any]]) -> None:
    for of_rank in of_ranks:
        loss, d_weight, compiled_loss, compiled_d_weight = of_rank["compiled"]
        torch.testing.assert_close(compiled_loss, loss)
        torch.testing.assert_close(compiled_d_weight, d_weight)
