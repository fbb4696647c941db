"""What elva.py trains with after the supervised start, and the settings that it tries."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Recipe:
    """How the steps after the supervised start are taken.

    supervised: weight of a supervised loss beside the reinforcement learning, if there is any.
    level_weight: of the levels below the finest, whose weight is 1; multi-level.
    ranking, margin: weights of the rewards; both 0: no reinforcement learning.
    rule: of the ranking reward, concordance over all pairs or nDCG@10 with linear gains.
    target: of the margin reward.
    cosine: mean cosine of a rollout to its embedding: how far it explores.
    kl_weight: of the KL divergence to the supervised start.
    learning_rate: the highest of the cycle.
    graded: batches of GradedBatchSampler, a quarter mined hard negatives and a quarter neighbours;
        False: random ones.
    """

    supervised: float = 0.0
    loss: Literal["info_nce", "multi_level"] = "multi_level"
    level_weight: float = 0.1
    ranking: float = 0.0
    margin: float = 0.0
    rule: Literal["concordance", "ndcg"] = "concordance"
    target: float = 0.2
    rollouts: int = 16
    cosine: float = 0.95
    kl_weight: float = 0.1
    learning_rate: float = 3e-4
    graded: bool = True

    def told(self) -> dict[str, Any]:
        """What the method has: all of it where it learns from rewards."""
        everything = asdict(self)
        if self.ranking + self.margin == 0:
            kept = ("loss", "learning_rate", "graded", "level_weight")
            everything = {name: everything[name] for name in kept}
        return everything


INFO_NCE = Recipe(supervised=1, loss="info_nce")
MULTI_LEVEL = Recipe(supervised=1)
RANKING, MARGIN = Recipe(ranking=1), Recipe(margin=1)
BOTH = Recipe(ranking=1, margin=1)
#: What is tried of each method.
GRID = {
    "info_nce": [
        replace(INFO_NCE, learning_rate=rate, graded=graded)
        for rate in (3e-4, 1e-3)
        for graded in (False, True)
    ],
    "multi_level": [
        replace(MULTI_LEVEL, learning_rate=rate, graded=graded)
        for rate in (3e-4, 1e-3)
        for graded in (False, True)
    ],
    "multi_level_equal": [
        replace(MULTI_LEVEL, level_weight=1.0, learning_rate=rate, graded=False)
        for rate in (3e-4, 1e-3)
    ],
    "ranking": [
        *(replace(RANKING, kl_weight=kl) for kl in (0.03, 0.1, 0.3)),
        *(replace(RANKING, cosine=a) for a in (0.9, 0.98)),
        replace(RANKING, rule="ndcg"),
        replace(RANKING, learning_rate=1e-3, kl_weight=0.3),
    ],
    "margin": [
        *(replace(MARGIN, kl_weight=kl) for kl in (0.03, 0.1, 0.3)),
        *(replace(MARGIN, target=target) for target in (0.1, 0.4)),
    ],
    "both": [replace(BOTH, kl_weight=kl) for kl in (0.03, 0.1, 0.3)],
    "mixed": [
        replace(BOTH, supervised=weight, kl_weight=kl)
        for weight, kl in ((10, 0.03), (30, 0.03), (10, 0.1), (30, 0.1))
    ],
}
LABELS = {
    "start": "supervised start, no further step",
    "info_nce": "InfoNCE",
    "multi_level": "multi-level",
    "multi_level_equal": "multi-level, equal level weights",
    "ranking": "RL, ranking reward",
    "margin": "RL, margin reward",
    "both": "RL, both rewards",
    "mixed": "RL, both rewards, and multi-level",
}
RECALL_LOSS = 0.01  # of InfoNCE's recall@1 that another method may give away


def chosen(tuned: dict[str, Any], grid: dict[str, list[Recipe]]) -> dict[str, Recipe]:
    """The best recipe of each method, from `tuning`'s result.

    InfoNCE by its recall@1; of the others the highest nDCG@10 among the settings whose recall@1 is
    at most a point below InfoNCE's, or, where there is none, the highest recall@1.
    """
    least, found = 0.0, {}
    for method, recipes in grid.items():
        values = [run["metrics"] for run in tuned["runs"] if run["method"] == method]
        enough = [i for i, v in enumerate(values) if v["recall@1"] >= least]
        by = "ndcg@10[linear]" if enough and method != "info_nce" else "recall@1"
        best = max(enough or range(len(values)), key=lambda i: values[i][by])
        if method == "info_nce":
            least = values[best]["recall@1"] - RECALL_LOSS
        found[method] = recipes[best]
    return found
