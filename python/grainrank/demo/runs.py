"""Trains and evaluates every method for every seed, or goes on where a command was stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch

from ..checkpoints import Checkpoint, Checkpoints
from .loop import Position
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
    task: Task,
    methods: Sequence[Method],
    seeds: Iterable[int],
    splits: Sequence[str],
    checkpoints: Checkpoints,
) -> list[Run]:
    """All runs, seed by seed; a method without training runs once, for the first seed.

    Raises:
        FileError: a checkpoint cannot be used; before anything is trained.
    """
    plan = [
        (method, seed)
        for i, seed in enumerate(seeds)
        for method in methods
        if method.recipe is not None or i == 0
    ]
    kept = [_checkpoint(method, seed, task, splits, checkpoints) for method, seed in plan]
    positions = [Position(checkpoint) for checkpoint in kept]
    finished = sum(position.result is not None for position in positions)
    under_way = sum(position.epochs > 0 for position in positions)
    checkpoints.announce(finished, len(plan), under_way)
    steps = [
        task.steps(method.recipe) * (method.recipe.epochs - position.epochs) // method.recipe.epochs
        for (method, _), position in zip(plan, positions, strict=True)
        if method.recipe is not None and position.result is None
    ]
    del positions  # with the weights of the runs under way
    jobs = [
        partial(_run, method, seed, task, splits, checkpoint)
        for (method, seed), checkpoint in zip(plan, kept, strict=True)
    ]
    with progress(f"training {len(plan) - finished} runs", sum(steps)) as step:
        return run_side_by_side(jobs, step)


def _checkpoint(
    method: Method, seed: int, task: Task, splits: Sequence[str], checkpoints: Checkpoints
) -> Checkpoint:
    recipe = method.recipe
    return checkpoints.of(
        f"{task.name}-{method.key}-seed{seed}",
        recipe=None if recipe is None else asdict(recipe),
        steps=0 if recipe is None else task.steps(recipe),
        queries={name: len(task.queries[name]) for name in splits},
        candidates=len(task.grains),
        seed=seed,
    )


def _run(
    method: Method,
    seed: int,
    task: Task,
    splits: Sequence[str],
    checkpoint: Checkpoint,
    on_step: Callable[[], None],
) -> Run:
    position = Position(checkpoint)
    if position.result is not None:
        rankings = {name: Ranking(**parts) for name, parts in position.result.items()}
        return Run(method, seed, rankings, position.seconds)
    recipe = method.recipe
    model = None if recipe is None else task.train(recipe, seed, on_step, position)
    with torch.inference_mode():
        rankings = {
            name: rank(blocks, task.queries[name].targets, task.grains)
            for name, blocks in zip(splits, task.similarities(model, splits), strict=True)
        }
    position.finished({name: vars(ranking) for name, ranking in rankings.items()})
    return Run(method, seed, rankings, position.seconds)
