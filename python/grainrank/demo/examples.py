"""Ten test queries with what each loss ranks first; drawn at random, not picked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..data.icd10 import Icd10
from .runs import Run

SPLIT, SEED, COUNT, TOP = "test_seen", 0, 10, 5
RULE = (
    f"{COUNT} queries of {SPLIT} without near-duplicates, drawn by "
    f"torch.randperm with seed {SEED}, none picked by hand; models of the first training seed"
)


def examples(data: Icd10, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The drawn queries with the five best candidates of every method."""
    queries = data.queries[SPLIT]
    kept = (~queries.near_duplicate).nonzero().flatten()
    drawn = torch.randperm(len(kept), generator=torch.Generator().manual_seed(SEED))[:COUNT]
    first = {run.method.key: run for run in reversed(runs)}  # of several seeds the first one stays
    return [
        {
            "query": queries.texts[row],
            "target": _candidate(data, int(queries.targets[row])),
            "top": {run.method.key: _top(data, run, row) for run in reversed(first.values())},
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


def _candidate(data: Icd10, index: int) -> dict[str, Any]:
    return {"code": data.codes[index], "description": data.candidates[index]}


def _top(data: Icd10, run: Run, row: int) -> list[dict[str, Any]]:
    ranking = run.rankings[SPLIT]
    names = ("nothing", *data.grain_names)
    return [
        {**_candidate(data, index), "shares": names[level]}
        for index, level in zip(
            ranking.indices[row, :TOP].tolist(), ranking.levels[row, :TOP].tolist(), strict=True
        )
    ]
