"""Trains the demo's encoder on ICD-10-CM with losses on ranks, beside InfoNCE and multi-level NCE.

`python benchmarks/train_ranks.py --tune` trains every setting of rank_recipes.GRID with one seed
and looks at validation queries; `python benchmarks/train_ranks.py` trains rank_recipes.METHODS,
chosen from these, with three seeds and looks at the test queries. Each writes its section of
benchmarks/results/train-ranks-icd10.json and keeps the other. docs/losses.md shows the file. What a
command that was stopped has finished is kept beside the file: the same command does the rest.

All runs share the data, the initial weights, the order of the batches and the optimiser; metrics
are grainrank.metrics over all candidates. Queries that are nearly a training query are left out.
As many runs as torch has threads go at once (OMP_NUM_THREADS). Seconds are those of a run, on a
machine that may be busy: no measure of the speed of a loss.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from over_seeds import cell, over_seeds
from rank_recipes import GRID, LABELS, METHODS, Recipe, training_loss

from grainrank import GrainKeys, metrics, positive_ranks
from grainrank.checkpoints import (
    Checkpoints,
    FileError,
    read_results,
    require_room,
    write_atomically,
)
from grainrank.data import icd10
from grainrank.demo.encoder import Encoder
from grainrank.demo.progress import progress
from grainrank.demo.training import Features, featurise, run_side_by_side, train_with
from grainrank.machine import machine_header

RESULT = Path(__file__).parent / "results" / "train-ranks-icd10.json"
VALIDATION = ("validation_seen", "validation_unseen")
TEST = ("test_seen", "test_unseen")
SEEDS = 3
METRICS = ("recall@1", "recall@10", "ndcg@10[linear]", "hierarchical_ap", "violation_rate")
Values = dict[str, float]  # of each metric


def evaluate(
    encoder: Encoder, data: icd10.Icd10, features: Features, splits: Sequence[str]
) -> tuple[int, Values]:
    """Queries of the splits, and the means over them; recall is of the exact code."""
    finest = data.grains.shape[1]
    of_metric: dict[str, list[torch.Tensor]] = {name: [] for name in METRICS}
    with torch.inference_mode():
        candidates = encoder(features.candidates)  # [M, D]
        for name in splits:
            kept = ~data.queries[name].near_duplicate
            targets = data.queries[name].targets[kept]
            levels = GrainKeys(data.grains[targets], data.grains)
            ranks = positive_ranks(encoder(features.queries[name])[kept], candidates, levels)
            of_metric["recall@1"].append(metrics.recall_at(ranks, 1, finest))
            of_metric["recall@10"].append(metrics.recall_at(ranks, 10, finest))
            of_metric["ndcg@10[linear]"].append(metrics.ndcg_at(ranks, 10, gain="linear"))
            of_metric["hierarchical_ap"].append(metrics.hierarchical_average_precision(ranks))
            of_metric["violation_rate"].append(metrics.level_violation_rate(ranks))
    values = {name: torch.cat(parts) for name, parts in of_metric.items()}  # [n] each
    return len(values["recall@1"]), {name: v.mean().item() for name, v in values.items()}


def train_and_evaluate(
    recipe: Recipe,
    seed: int,
    data: icd10.Icd10,
    features: Features,
    parts: dict[str, Sequence[str]],
    on_step: Callable[[], None],
) -> dict[str, Any]:
    """One run; `parts` are splits that are looked at together, by name."""
    start = time.monotonic()
    loss = training_loss(recipe, steps=_steps(recipe, data))
    encoder = train_with(
        loss,
        recipe.epochs,
        seed,
        data,
        features,
        on_step,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
    )
    found = {name: evaluate(encoder, data, features, splits) for name, splits in parts.items()}
    return {
        "seconds": round(time.monotonic() - start, 1),
        "queries": {name: queries for name, (queries, _) in found.items()},
        "metrics": {name: values for name, (_, values) in found.items()},
    }


def run_all(
    data: icd10.Icd10,
    plan: Sequence[tuple[Recipe, int]],
    parts: dict[str, Sequence[str]],
    checkpoints: Checkpoints,
) -> list[dict[str, Any]]:
    """The runs of recipes and seeds, in their order; without those that are kept."""
    features = featurise(data)
    kept = [
        checkpoints.of(f"{recipe.loss}-seed{seed}", recipe=asdict(recipe), seed=seed, parts=parts)
        for recipe, seed in plan
    ]
    runs = [checkpoint.load() for checkpoint in kept]
    missing = [i for i, run in enumerate(runs) if run is None]
    checkpoints.announce(len(runs) - len(missing), len(runs))

    def train(i: int, on_step: Callable[[], None]) -> None:
        runs[i] = train_and_evaluate(*plan[i], data, features, parts, on_step)
        kept[i].save(runs[i])

    total = sum(plan[i][0].epochs * _steps(plan[i][0], data) for i in missing)
    with progress(f"training {len(missing)} runs", total) as step:
        run_side_by_side([partial(train, i) for i in missing], step)
    return runs


def tuning(
    data: icd10.Icd10, grid: Sequence[Recipe], checkpoints: Checkpoints
) -> list[dict[str, Any]]:
    """One run of each recipe: the metrics over both validation splits together."""
    plan = [(recipe, 0) for recipe in grid]
    runs = run_all(data, plan, {"validation": VALIDATION}, checkpoints)
    return [
        {
            "recipe": recipe.told(),
            "seconds": run["seconds"],
            "metrics": run["metrics"]["validation"],
        }
        for recipe, run in zip(grid, runs, strict=True)
    ]


def testing(
    data: icd10.Icd10, methods: dict[str, Recipe], seeds: int, checkpoints: Checkpoints
) -> dict[str, Any]:
    """Of each method mean, standard deviation and runs of every metric, by split."""
    plan = [(recipe, seed) for recipe in methods.values() for seed in range(seeds)]
    runs = run_all(data, plan, {name: (name,) for name in TEST}, checkpoints)
    result = {}
    for i, (key, recipe) in enumerate(methods.items()):
        own = runs[i * seeds : (i + 1) * seeds]
        result[key] = {
            "label": LABELS[key],
            "recipe": recipe.told(),
            "seeds": list(range(seeds)),
            "seconds": [run["seconds"] for run in own],
            "splits": {
                split: {
                    "queries": own[0]["queries"][split],
                    "metrics": {
                        name: over_seeds([run["metrics"][split][name] for run in own])
                        for name in METRICS
                    },
                }
                for split in TEST
            },
        }
    return result


def table(methods: dict[str, Any], split: str) -> str:
    """Of docs/losses.md: percentages, mean +- standard deviation."""
    lines = [f"| loss | {' | '.join(METRICS)} |", "| --- " * (1 + len(METRICS)) + "|"]
    for method in methods.values():
        cells = [cell(method["splits"][split]["metrics"][name]) for name in METRICS]
        lines.append(f"| {method['label']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _steps(recipe: Recipe, data: icd10.Icd10) -> int:
    return len(data.queries["train"]) // recipe.batch  # of an epoch


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tune", action="store_true", help="the grid, on validation queries")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS),
                        metavar="KEY", help="only these; the file keeps the others")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch")
    parser.add_argument("--out", type=Path, default=RESULT, help="the result file")
    options = parser.parse_args(arguments)
    if options.quick and options.out == RESULT:
        parser.error("--quick needs --out: its figures are not those of the documents")

    folder = options.out.with_suffix(".checkpoints")
    checkpoints = Checkpoints(folder, "train_ranks", sources=Path(__file__).parent)
    try:
        data = icd10.load()
    except (ModuleNotFoundError, RuntimeError) as error:
        parser.exit(1, f"train_ranks: {error}\n")
    try:
        require_room(options.out)
        _run(data, options, checkpoints)
    except FileError as error:
        parser.exit(1, f"train_ranks: {error}\n")


def _run(data: icd10.Icd10, options: argparse.Namespace, checkpoints: Checkpoints) -> None:
    found = read_results(options.out)
    found |= {"what": "the demo's encoder on ICD-10-CM, trained with losses on ranks"}
    section = found.setdefault("tuning" if options.tune else "testing", {})
    section["machine"] = machine_header()
    if options.tune:
        # Quick: one recipe of each loss.
        grid = [r.quick() for r in {r.loss: r for r in GRID}.values()] if options.quick else GRID
        section["runs"] = tuning(data, grid, checkpoints)
    else:
        chosen = {key: METHODS[key] for key in options.methods}
        if options.quick:
            chosen = {key: recipe.quick() for key, recipe in chosen.items()}
        known = section.get("methods", {})
        known |= testing(data, chosen, 1 if options.quick else SEEDS, checkpoints)
        section["methods"] = {key: known[key] for key in METHODS if key in known}
        for split in TEST:
            print(split, table(section["methods"], split), sep="\n\n", end="\n\n")
    with checkpoints.writing(options.out):
        write_atomically(options.out, (json.dumps(found, indent=1) + "\n").encode())
    checkpoints.clear()


if __name__ == "__main__":
    main()
