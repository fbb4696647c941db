"""What the demo needs to know of a data set: its queries, its training and its words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..data.icd10 import Queries
from .loop import Position
from .recipes import Method
from .training import Recipe


@dataclass(frozen=True)
class Words:
    """Texts of the table and of the picture.

    headings: of the table, by split.
    finest: the exact item, such as "exact code".
    facts: what the caption says of this data set, beside what holds for all.
    tuning: the caption's sentence on how the recipes were chosen.
    same: what the picture says that the losses have in common.
    queries, candidates: for the picture's footnote, such as "code descriptions".
    command: that draws the picture.
    label_ranks: the rank at which the picture names each level's area, wrong to exact.
    """

    headings: Mapping[str, str]
    finest: str
    facts: str
    tuning: str
    same: str
    queries: str
    candidates: str
    command: str
    label_ranks: Sequence[int]


class Task(Protocol):
    """One data set: N queries in splits, M candidates with K grains, and how to train on it."""

    name: str
    #: `[M, K]`, coarse to fine, and the names of the columns.
    grains: Tensor
    grain_names: tuple[str, ...]
    #: The splits that can be evaluated; targets are candidates.
    queries: Mapping[str, Queries]
    #: Further counts of queries, for results.json alone.
    other_counts: Mapping[str, int]
    words: Words
    #: Number of epochs by default, and with `--quick`.
    epochs: int
    quick_epochs: int

    def methods(self, epochs: int) -> list[Method]:
        """The rows of the table."""

    def sweep(self, epochs: int) -> list[Method]:
        """What `--tune` compares."""

    def steps(self, recipe: Recipe) -> int:
        """Number of training steps."""

    def train(
        self,
        recipe: Recipe,
        seed: int,
        on_step: Callable[[], None],
        position: Position | None = None,
    ) -> Any:
        """A trained model; `seed` draws its initial weights and its batches, `position` is where
        it begins.
        """

    def similarities(self, model: Any, splits: Sequence[str]) -> Iterator[Iterator[Tensor]]:
        """For each split the row blocks `[rows, M]`; model None is the untrained baseline."""

    def candidate(self, index: int) -> dict[str, str]:
        """Its `code` and `description`, for the examples."""
