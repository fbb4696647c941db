"""Ten test queries with what each loss ranks first; drawn at random, not picked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .runs import Run
from .task import Task

SPLIT, SEED, COUNT, TOP = "test_seen", 0, 10, 5
RULE = (
    f"{COUNT} queries of {SPLIT} without near-duplicates, drawn by "
    f"torch.randperm with seed {SEED}, none picked by hand; models of the first training seed"
)


def examples(task: Task, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The drawn queries with the five best candidates of every method."""
    queries = task.queries[SPLIT]
    kept = (~queries.near_duplicate).nonzero().flatten()
    drawn = torch.randperm(len(kept), generator=torch.Generator().manual_seed(SEED))[:COUNT]
    first = {run.method.key: run for run in reversed(runs)}  # of several seeds the first one stays
    return [
        {
            "query": queries.texts[row],
            "target": task.candidate(int(queries.targets[row])),
            "top": {run.method.key: _top(task, run, row) for run in reversed(first.values())},
        }
        for row in kept[drawn].tolist()
    ]


def examples_text(found: Sequence[dict[str, Any]], labels: dict[str, str]) -> str:
    """For examples.txt; a line's mark says what the candidate shares with the target."""
    lines = [f"Rule: {RULE}.", "Marks: what a candidate shares with the target, at its finest.", ""]
    for number, example in enumerate(found, start=1):
        target = example["target"]
        lines += [
            f'{number}. query: "{example["query"]}"',
            f"   target: {target['code']} {target['description']}",
        ]
        for key, label in labels.items():
            lines.append(f"   {label}")
            for place, hit in enumerate(example["top"][key], start=1):
                mark = f"[{hit['shares']}]".ljust(10)
                lines.append(f"     {place}. {mark} {hit['code']:8} {hit['description']}")
        lines.append("")
    return "\n".join(lines)


def _top(task: Task, run: Run, row: int) -> list[dict[str, Any]]:
    ranking = run.rankings[SPLIT]
    names = ("nothing", *task.grain_names)
    return [
        {**task.candidate(index), "shares": names[level]}
        for index, level in zip(
            ranking.indices[row, :TOP].tolist(), ranking.levels[row, :TOP].tolist(), strict=True
        )
    ]
