"""Trains and evaluates every method for every seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ..data.icd10 import Icd10
from .metrics import Ranking, cosine_blocks, rank
from .progress import progress
from .recipes import Method
from .tfidf import tfidf_blocks
from .training import Features, featurise, run_side_by_side, steps_of, train


@dataclass(frozen=True)
class Run:
    """One method with one seed: how it ranks the candidates for each split."""

    method: Method
    seed: int
    rankings: dict[str, Ranking]
    seconds: float


def run_all(
    data: Icd10, methods: Sequence[Method], seeds: Iterable[int], splits: Sequence[str]
) -> list[Run]:
    """All runs, seed by seed; a method without training runs once, for the first seed."""
    features = featurise(data)
    plan = [
        (method, seed)
        for i, seed in enumerate(seeds)
        for method in methods
        if method.recipe is not None or i == 0
    ]
    total = sum(steps_of(m.recipe, data) for m, _ in plan if m.recipe is not None)
    jobs = [partial(_run, method, seed, data, features, splits) for method, seed in plan]
    with progress(f"training {len(plan)} runs", total) as step:
        return run_side_by_side(jobs, step)


def _run(
    method: Method,
    seed: int,
    data: Icd10,
    features: Features,
    splits: Sequence[str],
    on_step: Callable[[], None],
) -> Run:
    start = time.monotonic()
    if method.recipe is not None:
        encoder = train(method.recipe, seed, data, features, on_step)
    rankings = {}
    with torch.inference_mode():
        for name in splits:
            bags = features.queries[name]
            if method.recipe is None:
                blocks = tfidf_blocks(bags, features.candidates)
            else:
                blocks = cosine_blocks(encoder(bags), encoder(features.candidates))
            rankings[name] = rank(blocks, data.queries[name].targets, data.grains)
    return Run(method, seed, rankings, time.monotonic() - start)
