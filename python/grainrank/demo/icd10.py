"""The demo on ICD-10-CM: synonyms of a disease find the description of its code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from ..data import icd10
from ..data.icd10 import Queries
from . import recipes
from .encoder import Encoder
from .loop import Position
from .metrics import cosine_blocks
from .recipes import Method
from .task import Words
from .tfidf import tfidf_blocks
from .training import Recipe, featurise, steps_of, train

WORDS = Words(
    headings={"test_seen": "seen codes", "test_unseen": "codes never seen in training"},
    finest="exact code",
    facts="{dropped} of the {queries:,} test queries dropped as nearly a training query (word "
    "Jaccard >= 0.8)",
    tuning="Temperatures and epochs were chosen on validation queries (--tune).",
    same="Same encoder, same data, each loss tuned for recall@1",
    queries="held-out ICD-10-CM synonyms",
    candidates="code descriptions",
    command="python -m grainrank demo",
    label_ranks=(3, 7, 7, 4, 1),
)


class Icd10Task:
    """See `Task`."""

    name = "icd10"
    words = WORDS
    epochs = recipes.EPOCHS
    quick_epochs = 5

    def __init__(self) -> None:
        self.data = icd10.load()
        self.grains = self.data.grains
        self.grain_names = self.data.grain_names
        self.queries: Mapping[str, Queries] = self.data.queries
        self.other_counts: Mapping[str, int] = {}
        self.features = featurise(self.data)

    def methods(self, epochs: int) -> list[Method]:
        return recipes.methods(epochs)

    def sweep(self, epochs: int) -> list[Method]:
        return recipes.sweep(epochs)

    def steps(self, recipe: Recipe) -> int:
        return steps_of(recipe, self.data)

    def train(
        self,
        recipe: Recipe,
        seed: int,
        on_step: Callable[[], None],
        position: Position | None = None,
    ) -> Encoder:
        return train(recipe, seed, self.data, self.features, on_step, position)

    def similarities(
        self, model: Encoder | None, splits: Sequence[str]
    ) -> Iterator[Iterator[Tensor]]:
        candidates = self.features.candidates
        for name in splits:
            bags = self.features.queries[name]
            if model is None:
                yield tfidf_blocks(bags, candidates)
            else:
                yield cosine_blocks(model(bags), model(candidates))

    def candidate(self, index: int) -> dict[str, str]:
        return {"code": self.data.codes[index], "description": self.data.candidates[index]}
