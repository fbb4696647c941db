"""`--tune`: the sweep on the validation queries by which the recipes were chosen."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from .metrics import NDCG, Ranking, summarise
from .recipes import Method
from .runs import Run
from .task import Task

SPLITS = ("validation_seen", "validation_unseen")
_COLUMNS = ("recall@1", "recall@10", NDCG)


def tuning_table(task: Task, methods: Sequence[Method], runs: Sequence[Run]) -> str:
    """Percentages over both validation splits together, mean +- standard deviation over seeds."""
    width = max(len(method.label) for method in methods)
    lines = [" ".join([" " * width, *(column.rjust(16) for column in _COLUMNS)])]
    for method in methods:
        summaries = [
            summarise(_validation(task, run), task.grain_names)
            for run in runs
            if run.method.key == method.key
        ]
        cells = [_cell([100 * s[column] for s in summaries]) for column in _COLUMNS]
        lines.append(" ".join([method.label.ljust(width), *cells]))
    return "\n".join(lines)


def _validation(task: Task, run: Run) -> Ranking:
    kept = [run.rankings[name].select(~task.queries[name].near_duplicate) for name in SPLITS]
    return Ranking(
        indices=torch.cat([r.indices for r in kept]),
        levels=torch.cat([r.levels for r in kept]),
        best_levels=torch.cat([r.best_levels for r in kept]),
        targets=torch.cat([r.targets for r in kept]),
    )


def _cell(values: Sequence[float]) -> str:
    spread = f" +-{statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}".rjust(16)
