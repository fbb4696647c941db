"""What the demo compares, and how each loss was tuned."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .training import Recipe

EPOCHS = 20


@dataclass(frozen=True)
class Method:
    """One row of the table. `key` names it in results.json; without a recipe it is TF-IDF."""

    key: str
    label: str
    recipe: Recipe | None = None


# Chosen by `python -m grainrank demo --tune` (validation queries, 3 seeds): the highest recall@1 of
# either loss, and for the baseline the highest nDCG as well, which another recipe reaches.
INFONCE = Recipe("infonce", 0.1, EPOCHS)
INFONCE_GRADED = Recipe("infonce", 0.3, EPOCHS // 2)
MULTI_LEVEL = Recipe("multi_level", 0.1, EPOCHS)

TUNED_TEMPERATURES = (0.05, 0.07, 0.1, 0.14, 0.2, 0.3)


def methods(epochs: int) -> list[Method]:
    """The rows of the table, for another number of epochs than the tuned one as well."""
    graded = min(INFONCE_GRADED.epochs, epochs)
    return [
        Method("tfidf", "TF-IDF, untrained"),
        Method("infonce", "InfoNCE, tuned for recall@1", replace(INFONCE, epochs=epochs)),
        Method("infonce_graded", "InfoNCE, tuned for nDCG", replace(INFONCE_GRADED, epochs=graded)),
        Method("multi_level", "multi-level", replace(MULTI_LEVEL, epochs=epochs)),
    ]


def sweep(epochs: int) -> list[Method]:
    """What `--tune` compares: temperatures of both losses, and InfoNCE stopped earlier."""
    recipes = []
    for temperature in TUNED_TEMPERATURES:
        stops = [stop for stop in (EPOCHS // 4, EPOCHS // 2) if stop < epochs]
        recipes += [Recipe("infonce", temperature, stop) for stop in (*stops, epochs)]
        recipes.append(Recipe("multi_level", temperature, epochs))
    names = [f"{r.loss} t {r.temperature}, {r.epochs} epochs" for r in recipes]
    return [Method(name, name, recipe) for name, recipe in zip(names, recipes, strict=True)]
