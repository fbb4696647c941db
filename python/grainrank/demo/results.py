"""Gathers the runs into results.json."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from ..data.icd10 import Icd10
from ..machine import machine_header
from .metrics import levels_by_rank, summarise
from .recipes import Method
from .runs import Run


def results(data: Icd10, runs: Sequence[Run], splits: Sequence[str]) -> dict[str, Any]:
    """Plain dictionaries and lists. `splits` are the test queries without those that are nearly a
    training query; `splits_unfiltered` has all of them.
    """
    methods = {run.method.key: run.method for run in runs}
    return {
        "machine": machine_header(),
        "data": _about(data, splits),
        "methods": {
            key: _method(data, method, [r for r in runs if r.method.key == key], splits)
            for key, method in methods.items()
        },
        "best_possible_levels_by_rank": {
            name: levels_by_rank(
                runs[0].rankings[name].best_levels[~data.queries[name].near_duplicate],
                len(data.grain_names),
            )
            for name in splits
        },
    }


def _about(data: Icd10, splits: Sequence[str]) -> dict[str, Any]:
    grains = {
        name: int(data.grains[:, column].max()) + 1 for column, name in enumerate(data.grain_names)
    }
    return {
        "name": "icd10",
        "candidates": len(data.candidates),
        "grains": grains,
        "queries": {name: len(queries) for name, queries in data.queries.items()},
        "near_duplicates_dropped": {
            name: int(data.queries[name].near_duplicate.sum()) for name in splits
        },
    }


def _method(
    data: Icd10, method: Method, runs: Sequence[Run], splits: Sequence[str]
) -> dict[str, Any]:
    recipe = method.recipe
    result: dict[str, Any] = {"label": method.label}
    if recipe is not None:
        result |= {"temperature": recipe.temperature, "epochs": recipe.epochs, "loss": recipe.loss}
    result |= {
        "seeds": [run.seed for run in runs],
        "seconds": [round(run.seconds, 1) for run in runs],
        "splits": {name: _split(data, runs, name, filtered=True) for name in splits},
        "splits_unfiltered": {name: _split(data, runs, name, filtered=False) for name in splits},
    }
    return result


def _split(data: Icd10, runs: Sequence[Run], name: str, filtered: bool) -> dict[str, Any]:
    """Each metric's mean and standard deviation over the seeds, and its value for each."""
    kept = ~data.queries[name].near_duplicate | (not filtered)
    rankings = [run.rankings[name].select(kept) for run in runs]
    summaries = [summarise(ranking, data.grain_names) for ranking in rankings]
    levels = [levels_by_rank(ranking.levels, len(data.grain_names)) for ranking in rankings]
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
