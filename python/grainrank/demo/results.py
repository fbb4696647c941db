"""Gathers the runs into results.json."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from ..machine import machine_header
from .metrics import levels_by_rank, summarise
from .recipes import Method
from .runs import Run
from .task import Task


def results(task: Task, runs: Sequence[Run], splits: Sequence[str]) -> dict[str, Any]:
    """Plain dictionaries and lists. `splits` are the test queries without those that are nearly a
    training query; `splits_unfiltered` has all of them.
    """
    methods = {run.method.key: run.method for run in runs}
    return {
        "machine": machine_header(),
        "data": _about(task, splits),
        "methods": {
            key: _method(task, method, [r for r in runs if r.method.key == key], splits)
            for key, method in methods.items()
        },
        "best_possible_levels_by_rank": {
            name: levels_by_rank(
                runs[0].rankings[name].best_levels[~task.queries[name].near_duplicate],
                len(task.grain_names),
            )
            for name in splits
        },
    }


def _about(task: Task, splits: Sequence[str]) -> dict[str, Any]:
    grains = {
        name: int(task.grains[:, column].max()) + 1 for column, name in enumerate(task.grain_names)
    }
    return {
        "name": task.name,
        "candidates": len(task.grains),
        "grains": grains,
        "queries": {
            **task.other_counts,
            **{name: len(queries) for name, queries in task.queries.items()},
        },
        "near_duplicates_dropped": {
            name: int(task.queries[name].near_duplicate.sum()) for name in splits
        },
    }


def _method(
    task: Task, method: Method, runs: Sequence[Run], splits: Sequence[str]
) -> dict[str, Any]:
    recipe = method.recipe
    result: dict[str, Any] = {"label": method.label}
    if recipe is not None:
        result |= {"temperature": recipe.temperature, "epochs": recipe.epochs, "loss": recipe.loss}
        if recipe.level_weights is not None:
            result["level_weights"] = list(recipe.level_weights)
    result |= {
        "seeds": [run.seed for run in runs],
        "seconds": [round(run.seconds, 1) for run in runs],
        "splits": {name: _split(task, runs, name, filtered=True) for name in splits},
        "splits_unfiltered": {name: _split(task, runs, name, filtered=False) for name in splits},
    }
    return result


def _split(task: Task, runs: Sequence[Run], name: str, filtered: bool) -> dict[str, Any]:
    """Each metric's mean and standard deviation over the seeds, and its value for each."""
    kept = ~task.queries[name].near_duplicate | (not filtered)
    rankings = [run.rankings[name].select(kept) for run in runs]
    summaries = [summarise(ranking, task.grain_names) for ranking in rankings]
    levels = [levels_by_rank(ranking.levels, len(task.grain_names)) for ranking in rankings]
    return {
        "queries": int(kept.sum()),
        "metrics": {key: _over_seeds([s[key] for s in summaries]) for key in summaries[0]},
        "levels_by_rank": torch.tensor(levels, dtype=torch.float64).mean(dim=0).tolist(),
    }


def _over_seeds(values: list[float]) -> dict[str, Any]:
    """JSON has no NaN: a share of nothing is None."""
    known = [None if math.isnan(v) else v for v in values]
    sound = [v for v in known if v is not None]
    return {
        "mean": statistics.fmean(sound) if sound else None,
        "std": statistics.stdev(sound) if len(sound) > 1 else None,
        "runs": known,
    }
