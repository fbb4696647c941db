"""The losses that train_ranks.py compares, and the settings that it tries of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

import grainrank
from grainrank import GrainKeys, heads
from grainrank.losses.options import prepare
from grainrank.ranks.compute import smooth
from grainrank.ranks.surrogates import UpperBound

INFO_NCE_TEMPERATURE = 0.1  # the demo's, where a rank loss is mixed with InfoNCE or follows it

Loss = Literal["info_nce", "multi_level", "hierarchical_ap", "smooth_ndcg", "lambda_loss"]


@dataclass(frozen=True)
class Recipe:
    """One setting of a loss; what a loss does not have stays at its default.

    level_weight: of the levels below the finest, whose weight is 1; multi-level.
    relevance: of the levels 0..L; None: HAPPIER's, `(l / L) / count_l` of the row; hierarchical AP.
    rho, delta: of its upper bound of the step.
    gain: smooth nDCG, LambdaLoss.
    share: of the loss; the rest is InfoNCE.
    warm_epochs: how many epochs InfoNCE trains before, out of `epochs`.
    learning_rate: the highest of the cycle.
    """

    loss: Loss
    temperature: float
    epochs: int = 20
    level_weight: float = 0.1
    relevance: tuple[float, ...] | None = None
    rho: float = 100.0
    delta: float = 0.05
    gain: Literal["linear", "exp2"] = "linear"
    share: float = 1.0
    warm_epochs: int = 0
    learning_rate: float = 2e-3
    batch: int = 512

    def told(self) -> dict[str, Any]:
        """The loss, the temperature, the epochs, and what is not at its default."""
        default = asdict(Recipe(self.loss, self.temperature, self.epochs))
        always = ("loss", "temperature", "epochs")
        return {k: v for k, v in asdict(self).items() if k in always or v != default[k]}

    def quick(self) -> Recipe:
        return replace(self, epochs=1, warm_epochs=0)


#: The rows of the table, in its order. The first three are the demo's, and `multi_level_between` is
#: what lies between two of them; the others have the highest nDCG@10 of the loss in GRID, by its
#: own options alone.
METHODS = {
    "info_nce": Recipe("info_nce", 0.1),
    "info_nce_graded": Recipe("info_nce", 0.3, epochs=10),
    "multi_level": Recipe("multi_level", 0.1),
    "multi_level_between": Recipe("multi_level", 0.1, level_weight=0.3),
    "multi_level_graded": Recipe("multi_level", 0.1, level_weight=1.0),
    "hierarchical_ap": Recipe("hierarchical_ap", 0.05),
    "smooth_ndcg": Recipe("smooth_ndcg", 0.1, gain="exp2"),
    "lambda_loss": Recipe("lambda_loss", 0.2),
}
LABELS = {
    "info_nce": "InfoNCE, tuned for recall@1",
    "info_nce_graded": "InfoNCE, tuned for nDCG, 10 epochs",
    "multi_level": "multi-level, tuned for recall@1",
    "multi_level_between": "multi-level, level weights 0.3",
    "multi_level_graded": "multi-level, tuned for nDCG",
    "hierarchical_ap": "hierarchical AP",
    "smooth_ndcg": "smooth nDCG",
    "lambda_loss": "LambdaLoss",
}

_LINEAR = (0.0, 1.0, 2.0, 3.0, 4.0)  # relevance of a level, whatever its size
_FINEST = (0.0, 0.1, 0.1, 0.1, 1.0)  # like the weights of the multi-level loss
_BOTH = (0.0, 0.25, 0.5, 0.75, 4.0)
_HAP = Recipe("hierarchical_ap", 0.1, epochs=5)
#: What is tried of each loss, with few epochs.
GRID = [
    Recipe("info_nce", 0.1, 5),
    Recipe("info_nce", 0.3, 5),
    *(
        Recipe("multi_level", t, 5, level_weight=w)
        for t, w in ((0.1, 0.1), (0.1, 0.3), (0.1, 1.0), (0.05, 1.0), (0.2, 1.0))
    ),
    *(replace(_HAP, temperature=t) for t in (0.01, 0.03, 0.05, 0.1, 0.2)),
    *(replace(_HAP, temperature=t, relevance=_LINEAR) for t in (0.03, 0.1)),
    *(replace(_HAP, temperature=0.05, relevance=r) for r in (_FINEST, _BOTH)),
    *(replace(_HAP, share=s) for s in (0.5, 0.9)),
    *(replace(_HAP, rho=10.0, delta=d) for d in (0.05, 0.2)),
    replace(_HAP, warm_epochs=2),
    replace(_HAP, learning_rate=4e-3),
    *(Recipe("smooth_ndcg", t, 5) for t in (0.01, 0.03, 0.1, 0.3)),
    *(Recipe("smooth_ndcg", t, 5, gain="exp2") for t in (0.03, 0.1)),
    *(Recipe("lambda_loss", t, 5) for t in (0.05, 0.1, 0.2)),
    *(Recipe("lambda_loss", t, 5, gain="exp2") for t in (0.1, 0.2)),
]


def batch_loss(recipe: Recipe, queries: Tensor, candidates: Tensor, grains: Tensor) -> Tensor:
    """Mean of both directions; pair i has `queries[i]` `[N, D]`, `candidates[i]`, `grains[i]`."""
    loss = _graded(recipe, queries, candidates, grains)
    if recipe.share == 1:
        return loss
    binary = _info_nce(INFO_NCE_TEMPERATURE, queries, candidates, grains)
    return recipe.share * loss + (1 - recipe.share) * binary


def training_loss(recipe: Recipe, steps: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The loss of one run of `steps` steps an epoch, called once a step: InfoNCE while it warms."""
    done = 0

    def loss(queries: Tensor, candidates: Tensor, grains: Tensor) -> Tensor:
        nonlocal done
        done += 1
        if done <= recipe.warm_epochs * steps:
            return _info_nce(INFO_NCE_TEMPERATURE, queries, candidates, grains)
        return batch_loss(recipe, queries, candidates, grains)

    return loss


def _info_nce(temperature: float, queries: Tensor, candidates: Tensor, grains: Tensor) -> Tensor:
    """All pairs of one code are positives, as in the demo."""
    codes = GrainKeys(grains[:, -1:], grains[:, -1:])
    return grainrank.info_nce_loss(
        queries, candidates, codes, temperature=temperature, direction="symmetric"
    )


def _graded(recipe: Recipe, queries: Tensor, candidates: Tensor, grains: Tensor) -> Tensor:
    if recipe.loss == "info_nce":
        return _info_nce(recipe.temperature, queries, candidates, grains)
    levels = GrainKeys(grains, grains)
    options: dict[str, Any] = {"temperature": recipe.temperature, "direction": "symmetric"}
    if recipe.loss == "multi_level":
        weights = [recipe.level_weight] * (grains.shape[1] - 1) + [1.0]
        return grainrank.multi_level_ranking_loss(
            queries, candidates, levels, level_weights=weights, **options
        )
    if recipe.loss == "smooth_ndcg":
        return grainrank.smooth_ndcg_loss(queries, candidates, levels, gain=recipe.gain, **options)
    if recipe.loss == "lambda_loss":
        return grainrank.lambda_loss(queries, candidates, levels, gain=recipe.gain, **options)
    if (recipe.rho, recipe.delta) == (Recipe.rho, Recipe.delta):
        return grainrank.hierarchical_ap_loss(
            queries, candidates, levels, relevance=recipe.relevance, **options
        )
    forth = _other_bound(recipe, queries, candidates, levels)
    return (forth + _other_bound(recipe, candidates, queries, levels)) / 2


def _other_bound(recipe: Recipe, queries: Tensor, candidates: Tensor, levels: GrainKeys) -> Tensor:
    """Hierarchical AP with another upper bound than the public loss has; every row counts."""
    problem = prepare(queries, candidates, levels, fixed_scale=1.0)
    step = UpperBound(recipe.temperature, recipe.rho, recipe.delta)
    ranks = smooth(problem.batch, problem.backend, step)
    relevance = None if recipe.relevance is None else torch.tensor(recipe.relevance)
    return heads.hierarchical_ap(ranks, relevance).mean()
