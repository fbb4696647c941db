"""Trains and evaluates every method for every seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from .metrics import Ranking, rank
from .progress import progress
from .recipes import Method
from .task import Task
from .training import run_side_by_side


@dataclass(frozen=True)
class Run:
    """One method with one seed: how it ranks the candidates for each split."""

    method: Method
    seed: int
    rankings: dict[str, Ranking]
    seconds: float


def run_all(
    task: Task, methods: Sequence[Method], seeds: Iterable[int], splits: Sequence[str]
) -> list[Run]:
    """All runs, seed by seed; a method without training runs once, for the first seed."""
    plan = [
        (method, seed)
        for i, seed in enumerate(seeds)
        for method in methods
        if method.recipe is not None or i == 0
    ]
    total = sum(task.steps(method.recipe) for method, _ in plan if method.recipe is not None)
    jobs = [partial(_run, method, seed, task, splits) for method, seed in plan]
    with progress(f"training {len(plan)} runs", total) as step:
        return run_side_by_side(jobs, step)


def _run(
    method: Method, seed: int, task: Task, splits: Sequence[str], on_step: Callable[[], None]
) -> Run:
    start = time.monotonic()
    recipe = method.recipe
    model = None if recipe is None else task.train(recipe, seed, on_step)
    with torch.inference_mode():
        rankings = {
            name: rank(blocks, task.queries[name].targets, task.grains)
            for name, blocks in zip(splits, task.similarities(model, splits), strict=True)
        }
    return Run(method, seed, rankings, time.monotonic() - start)
