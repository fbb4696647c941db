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


# Chosen on the validation queries by `python -m grainrank demo --tune` (3 seeds).
INFONCE = Recipe("infonce", 0.1, EPOCHS)
INFONCE_EARLY = Recipe("infonce", 0.1, 5)
MULTI_LEVEL = Recipe("multi_level", 0.1, EPOCHS)

TUNED_TEMPERATURES = (0.05, 0.07, 0.1, 0.14, 0.2)
TUNED_EPOCHS = (5, 10)


def methods(epochs: int) -> list[Method]:
    """The rows of the table; the early stop is left out where training is no longer than that."""
    result = [
        Method("tfidf", "TF-IDF, untrained"),
        Method("infonce", "InfoNCE", replace(INFONCE, epochs=epochs)),
        Method("infonce_early", "InfoNCE, stopped early", INFONCE_EARLY),
        Method("multi_level", "multi-level", replace(MULTI_LEVEL, epochs=epochs)),
    ]
    return [m for m in result if m.recipe is not INFONCE_EARLY or INFONCE_EARLY.epochs < epochs]


def sweep(epochs: int) -> list[Method]:
    """What `--tune` compares: temperatures of both losses, and InfoNCE stopped earlier."""
    recipes = []
    for temperature in TUNED_TEMPERATURES:
        counts = [count for count in TUNED_EPOCHS if count < epochs]
        recipes += [Recipe("infonce", temperature, count) for count in (*counts, epochs)]
        recipes.append(Recipe("multi_level", temperature, epochs))
    names = [f"{r.loss} t {r.temperature}, {r.epochs} epochs" for r in recipes]
    return [Method(name, name, recipe) for name, recipe in zip(names, recipes, strict=True)]
