"""Trains the encoder; the losses differ in nothing but their key columns and their recipe."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor

from .. import GrainKeys, multi_level_ranking_loss
from ..data.icd10 import Icd10
from .encoder import Encoder, make_encoder
from .loop import Position, fit
from .text import Bags, hashed_ngrams

BATCH = 512
PEAK_LEARNING_RATE = 2e-3

T = TypeVar("T")
#: The loss of `queries`, `candidates` `[N, D]` and `grains` `[N, K]`; pair i has row i of each.
BatchLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """What is tuned for each loss on its own."""

    loss: Literal["infonce", "multi_level"]
    temperature: float
    epochs: int
    level_weights: tuple[float, ...] | None = None  # coarse to fine; None: the loss's own


@dataclass(frozen=True)
class Features:
    """The n-grams of all texts, hashed once."""

    candidates: Bags
    queries: dict[str, Bags]


class Stopped(Exception):
    """Another run failed or the user pressed Ctrl-C."""


def featurise(data: Icd10) -> Features:
    """Takes about a second."""
    queries = {name: hashed_ngrams(split.texts) for name, split in data.queries.items()}
    return Features(hashed_ngrams(data.candidates), queries)


def steps_of(recipe: Recipe, data: Icd10) -> int:
    return recipe.epochs * (len(data.queries["train"]) // BATCH)


def batch_loss(recipe: Recipe, queries: Tensor, candidates: Tensor, grains: Tensor) -> Tensor:
    """Mean of both directions; pair i has `queries[i]` `[N, D]`, `candidates[i]`, `grains[i]`.

    InfoNCE is the same loss with the finest grain alone: all pairs of one code are positives.
    """
    keys = grains if recipe.loss == "multi_level" else grains[:, -1:]  # [N, K]
    levels = GrainKeys(keys, keys)
    forth = multi_level_ranking_loss(queries, candidates, levels, temperature=recipe.temperature)
    back = multi_level_ranking_loss(candidates, queries, levels, temperature=recipe.temperature)
    return (forth + back) / 2  # type: ignore[no-any-return]


def train(
    recipe: Recipe,
    seed: int,
    data: Icd10,
    features: Features,
    on_step: Callable[[], None],
    position: Position | None = None,
) -> Encoder:
    """One run; `seed` draws the initial weights and the order of the batches."""
    loss = partial(batch_loss, recipe)
    return train_with(
        loss, recipe.epochs, seed, data, features, on_step, batch=BATCH, position=position
    )


def train_with(
    loss: BatchLoss,
    epochs: int,
    seed: int,
    data: Icd10,
    features: Features,
    on_step: Callable[[], None],
    *,
    batch: int,
    learning_rate: float = PEAK_LEARNING_RATE,
    position: Position | None = None,
) -> Encoder:
    """The same with any loss; `learning_rate` is the highest of the cycle. With a `position` the
    loss must hold nothing between its calls.
    """
    pairs, bags = data.queries["train"], features.queries["train"]
    encoder = make_encoder(seed)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=epochs * (len(pairs) // batch)
    )

    def of_rows(rows: Tensor, generator: torch.Generator) -> Tensor:
        targets = pairs.targets[rows]
        texts = bags.select(rows).followed_by(features.candidates.select(targets))
        queries, candidates = encoder(texts).split(batch)
        return loss(queries, candidates, data.grains[targets])

    fit(
        encoder, optimizer, schedule, of_rows, pairs=len(pairs), batch=batch, epochs=epochs,
        seed=seed, on_step=on_step, position=position,
    )  # fmt: skip
    return encoder.eval()


def run_side_by_side(
    jobs: Sequence[Callable[[Callable[[], None]], T]], on_step: Callable[[], None]
) -> list[T]:
    """Results of the jobs, in their order: as many at once as torch has threads, each on one.

    Twice as fast as one run on two threads, and it does not collapse when the cores are shared.
    A job gets a callable to call after each step.
    """
    threads = torch.get_num_threads()
    stop = threading.Event()

    def step() -> None:
        if stop.is_set():
            raise Stopped
        on_step()

    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads)
    try:
        futures = [pool.submit(job, step) for job in jobs]
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()  # raises what the first failed job raised
        return [future.result() for future in futures]
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
