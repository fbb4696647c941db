"""Supervised start, then reinforcement learning with verifiable rewards, or more supervision.

`python benchmarks/elva.py --tune` tries elva_recipes.GRID on validation queries with one seed;
`python benchmarks/elva.py` trains the setting of each method that did best there with three seeds,
and looks at the test queries. Each writes its section of benchmarks/results/elva.json and keeps the
other. What a command that was stopped has finished is kept beside the file: the same command does
the rest.

All methods begin with the same weights: those that the multi-level loss has reached, trained until
its learning rate has come down to 0. They then take the same number of steps of the same size with
the same optimiser, whose learning rate rises and falls once more; the loss, its own numbers and the
kind of the batches differ. Seconds are those of a machine that may be busy: no measure of speed.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from elva_recipes import GRID, LABELS, MULTI_LEVEL, Recipe, chosen
from elva_tasks import TASKS, Model, Task
from over_seeds import cell, over_seeds
from torch import Tensor
from torch.nn.functional import normalize

import grainrank
from grainrank import GrainKeys, metrics, positive_ranks
from grainrank.checkpoints import (
    Checkpoints,
    FileError,
    read_results,
    require_room,
    write_atomically,
)
from grainrank.machine import machine_header
from grainrank.rl import margin_reward, ranking_reward, weighted_reward
from grainrank.rl.grpo import group_advantages, grpo_loss
from grainrank.rl.policies import VonMisesFisherPolicy
from grainrank.rl.sampler import GradedBatchSampler, mine_hard_negatives

RESULT = Path(__file__).parent / "results" / "elva.json"
SEEDS = 3
METRICS = ("recall@1", "ndcg@10[linear]", "violation_rate", "hierarchical_ap")
BATCH, TEMPERATURE, START_LEARNING_RATE = 512, 0.1, 2e-3
STEPS = 40  # after the supervised start

Values = dict[str, float]  # of each metric


def supervised_loss(recipe: Recipe, q: Tensor, c: Tensor, grains: Tensor) -> Any:
    """Of both directions; all pairs of one finest grain are InfoNCE's positives."""
    options: dict[str, Any] = {"temperature": TEMPERATURE, "direction": "symmetric"}
    if recipe.loss == "info_nce":
        keys = grains[:, -1:]
        return grainrank.info_nce_loss(q, c, GrainKeys(keys, keys), **options)
    weights = [recipe.level_weight] * (grains.shape[1] - 1) + [1.0]
    return grainrank.multi_level_ranking_loss(
        q, c, GrainKeys(grains, grains), level_weights=weights, **options
    )


def reward_of(recipe: Recipe, drawn: Tensor, c: Tensor, levels: GrainKeys) -> Tensor:
    """`[G, N]`, of rollouts `drawn` against the batch's candidates."""
    parts, weights = [], []
    if recipe.ranking > 0:
        options: dict[str, Any] = {"rule": "ndcg", "gain": "linear", "k": 10}
        if recipe.rule == "concordance":
            options = {"average": "micro"}
        parts.append(ranking_reward(drawn, c, levels, **options))
        weights.append(recipe.ranking)
    if recipe.margin > 0:
        parts.append(margin_reward(drawn, c, levels, target=recipe.target, of="means"))
        weights.append(recipe.margin)
    return weighted_reward(*parts, weights=weights)


def step_loss(
    recipe: Recipe, q: Tensor, c: Tensor, start: Tensor, grains: Tensor, generator: torch.Generator
) -> tuple[Tensor, float]:
    """The loss of a batch, and its mean reward; `start`: its queries under the supervised start."""
    loss, reached = q.new_zeros(()), 0.0
    if recipe.supervised > 0:
        loss = recipe.supervised * supervised_loss(recipe, q, c, grains)
    if recipe.ranking + recipe.margin > 0:
        a = recipe.cosine
        policy = VonMisesFisherPolicy(a * (q.shape[1] - a * a) / (1 - a * a))
        drawn = policy.sample(q, recipe.rollouts, generator)  # [G, N, D]
        reward = reward_of(recipe, drawn, c.detach(), GrainKeys(grains, grains))
        reached = float(reward.mean())
        loss = loss + grpo_loss(
            policy.log_prob(drawn, q),
            None,
            group_advantages(reward),
            kl=policy.kl(q, start),
            kl_weight=recipe.kl_weight,
        )
    return loss, reached


def train(
    model: Model,
    task: Task,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    batches: Sequence[Sequence[int]],
    learning_rate: float,
) -> None:
    """A step a batch; `loss` of queries, candidates and the batch's rows among training queries."""
    (pairs,) = task.splits["train"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=len(batches)
    )
    for batch in batches:
        rows = torch.tensor(batch)
        q = model(pairs.queries.select(rows))
        c = model(task.candidates.select(pairs.targets[rows]))
        optimizer.zero_grad()
        loss(q, c, rows).backward()
        optimizer.step()
        schedule.step()


def supervised_start(task: Task, seed: int, epochs: int) -> Model:
    """The multi-level loss on random batches."""
    model = Model(seed)
    (pairs,) = task.splits["train"]
    grains = task.grains[pairs.targets]
    n = len(pairs.targets)
    generator = torch.Generator().manual_seed(seed)
    batches = [
        rows.tolist()
        for _ in range(epochs)
        for rows in torch.randperm(n, generator=generator).split(BATCH)[: n // BATCH]
    ]

    def loss(q: Tensor, c: Tensor, rows: Tensor) -> Any:
        return supervised_loss(MULTI_LEVEL, q, c, grains[rows])

    train(model, task, loss, batches, START_LEARNING_RATE)
    return model


def embeddings(model: Model, task: Task) -> tuple[Tensor, Tensor]:
    """Training queries and all candidates, of length 1."""
    (pairs,) = task.splits["train"]
    with torch.no_grad():
        return normalize(model(pairs.queries)), normalize(model(task.candidates))


def batches_of(model: Model, task: Task, seed: int, steps: int, graded: bool) -> list[list[int]]:
    """Of the supervised start; the same for all methods. Not graded: anchors alone."""
    (pairs,) = task.splits["train"]
    keys = task.grains[pairs.targets]
    hard, share = None, 0.0
    if graded:
        q, c = embeddings(model, task)
        levels = GrainKeys(keys, keys)
        hard = mine_hard_negatives(q, c[pairs.targets], levels, 16, below=levels.max_level)
        share = 0.25
    sampler = GradedBatchSampler(
        keys, BATCH, hard=hard, hard_share=share, neighbour_share=share, seed=seed
    )
    batches: list[list[int]] = []
    while len(batches) < steps:
        sampler.set_epoch(len(batches))
        batches += list(sampler)
    return batches[:steps]


def continued(
    model: Model, task: Task, recipe: Recipe, batches: Sequence[Sequence[int]], seed: int
) -> tuple[Model, list[float]]:
    """The model after the steps of a recipe, and the mean reward of each; `model` stays."""
    start, _ = embeddings(model, task)
    grains = task.grains[task.splits["train"][0].targets]
    generator = torch.Generator().manual_seed(seed)
    rewards = []

    def loss(q: Tensor, c: Tensor, rows: Tensor) -> Tensor:
        value, reward = step_loss(recipe, q, c, start[rows], grains[rows], generator)
        rewards.append(reward)
        return value

    other = copy.deepcopy(model)
    train(other, task, loss, batches, recipe.learning_rate)
    return other, rewards


def evaluate(model: Model, task: Task, name: str) -> Values:
    of_metric: dict[str, list[Tensor]] = {name: [] for name in METRICS}
    finest = task.grains.shape[1]
    with torch.inference_mode():
        candidates = model(task.candidates)
        for split in task.splits[name]:
            levels = GrainKeys(task.grains[split.targets], task.grains)
            ranks = positive_ranks(model(split.queries), candidates, levels)
            of_metric["recall@1"].append(metrics.recall_at(ranks, 1, finest))
            of_metric["ndcg@10[linear]"].append(metrics.ndcg_at(ranks, 10, gain="linear"))
            of_metric["violation_rate"].append(metrics.level_violation_rate(ranks))
            of_metric["hierarchical_ap"].append(metrics.hierarchical_average_precision(ranks))
    return {name: torch.cat(parts).mean().item() for name, parts in of_metric.items()}


def runs_of_seed(
    task: Task,
    seed: int,
    epochs: int,
    steps: int,
    recipes: Sequence[Recipe],
    splits: Sequence[str],
    checkpoints: Checkpoints,
) -> list[dict[str, Any]]:
    """The supervised start and what becomes of it: seconds, metrics by split, rewards."""
    facts = {"task": task.label, "epochs": epochs, "seed": seed, "splits": list(splits)}
    facts["threads"] = torch.get_num_threads()  # hang on it in the last bits
    kept = [
        checkpoints.of(f"continued-seed{seed}", recipe=asdict(recipe), steps=steps, **facts)
        for recipe in recipes
    ]
    runs = [checkpoint.load() for checkpoint in kept]
    missing = [i for i, run in enumerate(runs) if run is None]
    start = checkpoints.of(f"start-seed{seed}", **facts)
    saved, model = start.load(), Model(seed)
    checkpoints.announce(len(runs) - len(missing) + (saved is not None), 1 + len(runs))
    if saved is None:
        began = time.monotonic()
        model = supervised_start(task, seed, epochs)
        found = _found(model, task, splits, began, [])
        start.save({"found": found, "model": model.state_dict()})
    else:
        found = saved["found"]
        model.load_state_dict(saved["model"])
    batches = {
        graded: batches_of(model, task, seed, steps, graded)
        for graded in {recipes[i].graded for i in missing}
    }
    for i in missing:
        began = time.monotonic()
        other, rewards = continued(model, task, recipes[i], batches[recipes[i].graded], seed)
        runs[i] = _found(other, task, splits, began, rewards)
        kept[i].save(runs[i])
        print(f"{task.label}, seed {seed}: {i + 1} of {len(recipes)}", file=sys.stderr)
    return [found, *runs]


def _found(
    model: Model, task: Task, splits: Sequence[str], began: float, rewards: list[float]
) -> dict[str, Any]:
    seconds = round(time.monotonic() - began, 1)
    of_splits = {name: evaluate(model, task, name) for name in splits}
    return {"seconds": seconds, "metrics": of_splits, "rewards": [round(r, 4) for r in rewards]}


def tuning(
    task: Task,
    epochs: int,
    steps: int,
    grid: dict[str, list[Recipe]],
    checkpoints: Checkpoints,
) -> dict[str, Any]:
    plan = [(method, recipe) for method, recipes in grid.items() for recipe in recipes]
    start, *runs = runs_of_seed(
        task, 0, epochs, steps, [recipe for _, recipe in plan], ["validation"], checkpoints
    )
    return {
        "machine": machine_header(),
        "start": start["metrics"]["validation"],
        "runs": [
            {
                "method": method,
                "recipe": recipe.told(),
                "seconds": run["seconds"],
                "metrics": run["metrics"]["validation"],
            }
            for (method, recipe), run in zip(plan, runs, strict=True)
        ],
    }


def testing(
    task: Task,
    epochs: int,
    steps: int,
    methods: dict[str, Recipe],
    seeds: int,
    checkpoints: Checkpoints,
) -> dict[str, Any]:
    """Of the start and each method: mean, standard deviation and runs of every metric."""
    splits = [name for name in task.splits if name.startswith("test")]
    runs = [
        runs_of_seed(task, seed, epochs, steps, list(methods.values()), splits, checkpoints)
        for seed in range(seeds)
    ]
    return {
        "machine": machine_header(),
        "label": task.label,
        "start_epochs": epochs,
        "steps": steps,
        "queries": {name: sum(len(s.targets) for s in task.splits[name]) for name in splits},
        "methods": {
            key: {
                "label": LABELS[key],
                "recipe": {} if key == "start" else methods[key].told(),
                "seconds": [run["seconds"] for run in own],
                "rewards": [run["rewards"] for run in own],
                "splits": {
                    name: {
                        metric: over_seeds([run["metrics"][name][metric] for run in own])
                        for metric in METRICS
                    }
                    for name in splits
                },
            }
            for key, own in zip(["start", *methods], zip(*runs, strict=True), strict=True)
        },
    }


def table(methods: dict[str, Any], split: str) -> str:
    """Percentages, mean +- standard deviation."""
    lines = [f"| steps with | {' | '.join(METRICS)} |", "| --- " * (1 + len(METRICS)) + "|"]
    for method in methods.values():
        cells = [cell(method["splits"][split][metric]) for metric in METRICS]
        lines.append(f"| {method['label']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tune", action="store_true", help="the grid, on validation queries")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK",
                        help="only these; the file keeps the others")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, two steps")
    parser.add_argument("--out", type=Path, default=RESULT, help="the result file")
    options = parser.parse_args(arguments)
    if options.quick and options.out == RESULT:
        parser.error("--quick needs --out: its figures are not those of the documents")

    folder = options.out.with_suffix(".checkpoints")
    checkpoints = Checkpoints(folder, "elva", sources=Path(__file__).parent)
    try:
        require_room(options.out)
        _run(options, checkpoints, parser)
    except FileError as error:
        parser.exit(1, f"elva: {error}\n")


def _run(
    options: argparse.Namespace, checkpoints: Checkpoints, parser: argparse.ArgumentParser
) -> None:
    found = read_results(options.out)
    found |= {"what": "reinforcement learning with verifiable rewards after a supervised start"}
    grid = {key: recipes[:1] for key, recipes in GRID.items()} if options.quick else GRID
    steps, seeds = (2, 1) if options.quick else (STEPS, SEEDS)
    for name in options.tasks:
        make, epochs = TASKS[name]
        try:
            epochs, task = 1 if options.quick else epochs, make()
        except (ModuleNotFoundError, RuntimeError) as error:
            parser.exit(1, f"elva: {error}\n")
        if options.tune:
            found.setdefault("tuning", {})[name] = tuning(task, epochs, steps, grid, checkpoints)
        elif name not in found.get("tuning", {}):
            parser.error(f"{options.out} has no tuning of {name}: run --tune first")
        else:
            methods = chosen(found["tuning"][name], grid)
            section = testing(task, epochs, steps, methods, seeds, checkpoints)
            found.setdefault("testing", {})[name] = section
            for split in section["queries"]:
                print(task.label, split, table(section["methods"], split), sep="\n\n", end="\n\n")
        with checkpoints.writing(options.out):
            write_atomically(options.out, (json.dumps(found, indent=1) + "\n").encode())
    checkpoints.clear()


if __name__ == "__main__":
    main()
