"""Rollouts are ranked in chunks of rows: the levels of some rows, and what is in memory."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from profiling import profiled
from test_level_sources import sources
from test_rl_rewards import RULES, M, N, few_values, graded, integers, random

from grainrank import DenseLevels, Diagonal, GrainKeys, LevelSource
from grainrank.rl import margin_reward, ranking_reward, rollouts
from grainrank.rl.rollouts import row_chunks, rows_of_levels

CPU = torch.device("cpu")


def with_margin(source: LevelSource) -> LevelSource:
    return source.false_negative_margin(
        0.3,
        reference=(random(N, 5), random(M, 5, seed=1)),
        curated=(integers(0, 6, N, seed=5), integers(0, 6, M, seed=6)),
    )


@pytest.mark.parametrize("rows", [(0, N), (0, 1), (3, 7), (N - 1, N)], ids=str)
@pytest.mark.parametrize("name", sources(2, 2))
def test_some_rows_of_a_source(name: str, rows: tuple[int, int]) -> None:
    start, stop = rows
    source = sources(N, M)[name]
    some = rows_of_levels(source, start, stop, M, CPU)
    some.check(stop - start, M, CPU)
    assert some.max_level == source.max_level
    assert torch.equal(some.block(0, stop - start, M), source.block(start, stop, M))


def test_some_rows_of_more_queries_than_candidates() -> None:
    source = Diagonal(more_queries=True)
    expected = source.block(2, 8, 4)
    assert torch.equal(rows_of_levels(source, 2, 8, 4, CPU).block(0, 6, 4), expected)
    assert expected.sum() == 2


@pytest.mark.parametrize("name", [*sources(2, 2), "margin"])
def test_chunks_change_nothing(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    r, c = few_values()
    source = with_margin(sources(N, M)["union"]) if name == "margin" else sources(N, M)[name]
    run = functools.partial(ranking_reward, r[:2], c, source, normalize=False, backend=backend)
    rules = RULES["macro"], RULES["ndcg@5"]
    whole = [run(**options) for options in rules]
    for size, options, expected in zip((1, 1500), rules, whole, strict=True):
        monkeypatch.setattr(rollouts, "_CHUNK", size)
        assert len(list(row_chunks(source, N, M, CPU, backend="auto", workspace_mb=None))) > 1
        assert torch.equal(run(**options), expected)
    assert torch.equal(run(workspace_mb=0.003), whole[0])


@pytest.mark.parametrize("size", [1, 6_000, 12_000, 2**30])
def test_chunks_hold_what_they_may(
    size: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows once and in order, as many as fit, and one at least."""
    monkeypatch.setattr(rollouts, "_CHUNK", size)
    levels = graded()
    chunks = list(row_chunks(DenseLevels(levels), N, M, CPU, backend=backend, workspace_mb=None))
    assert [i for start, stop in chunks for i in range(start, stop)] == list(range(N))
    bytes_of_rows = [32 * 16 + (16 * 4 + 120) * int((row > 0).sum()) for row in levels]
    for start, stop in chunks:
        assert sum(bytes_of_rows[start:stop]) <= size or stop - start == 1
        assert stop == N or sum(bytes_of_rows[start : stop + 1]) > size
    assert len(chunks) == {1: N, 2**30: 1}.get(size, len(chunks))


@pytest.mark.parametrize("name", ["ranking", "ndcg", "margin"])
def test_the_matrix_is_never_stored(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But by the reference."""
    if backend != "reference":
        monkeypatch.setattr(rollouts, "_CHUNK", 2**18)
    n = 300 if backend == "reference" else 1000
    keys = torch.arange(n)[:, None] // torch.tensor([50, 5])
    r, c = random(2, n, 16), random(n, 16, seed=1)
    rewards: dict[str, Any] = {
        "ranking": ranking_reward,
        "ndcg": functools.partial(ranking_reward, rule="ndcg", gain="linear"),
        "margin": functools.partial(margin_reward, target=0.2),
    }
    run = functools.partial(rewards[name], r, c, GrainKeys(keys, keys), backend=backend)
    largest = profiled(lambda: run(workspace_mb=None if backend == "reference" else 0.25)).largest
    assert (largest >= n * n) == (backend == "reference")
    assert backend == "reference" or largest <= n * n // 3
