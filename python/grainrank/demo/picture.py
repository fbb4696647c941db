"""The picture: what stands at each rank of the top 10, by how much it shares with the target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..level_bars import INK, draw_bars, label_shares
from .metrics import NDCG, TOP
from .task import Words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Finest to coarsest in falling blue, wrong in orange: apart in print and for the colour-blind.
_COLOURS = ("#e8892b", "#cfe1f2", "#93c4de", "#3d86bf", "#0b3c6f")
_SPLIT = "test_seen"
_BASELINE, _GRADED, _OURS, _UNTRAINED = "infonce", "infonce_graded", "multi_level", "tfidf"
_THINNEST = 0.045  # share of the queries that a line of text needs


def draw(results: dict[str, Any], words: Words, file: Path | IO[bytes]) -> None:
    """Draws `results` (as in results.json) as PNG.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("matplotlib is missing: pip install 'grainrank[plot]'") from error
    methods = results["methods"]
    levels = {key: method["splits"][_SPLIT]["levels_by_rank"] for key, method in methods.items()}
    best = results["best_possible_levels_by_rank"][_SPLIT]
    coarser = list(results["data"]["grains"])[:-1]
    names = [f"wrong {coarser[0]}", *(f"right {grain}" for grain in coarser), words.finest]
    colours = (_COLOURS[0], *_COLOURS[-len(coarser) - 1 :])

    figure = Figure(figsize=(9, 4.85), dpi=200, facecolor="white")
    axes = figure.subplots(1, 3, sharey=True)
    figure.subplots_adjust(left=0.074, right=0.988, top=0.7, bottom=0.195, wspace=0.07)
    titles = "InfoNCE", "multi-level ranking loss", "best possible order"
    for panel, shares, title in zip(
        axes, (levels[_BASELINE], levels[_OURS], best), titles, strict=True
    ):
        draw_bars(panel, shares, colours)
        panel.set_title(title, fontsize=11.5, weight="bold", color=INK, loc="left", pad=5)
        panel.set_xlabel("rank of the result", color=INK, fontsize=9.5)
        panel.tick_params(labelsize=9)
    axes[0].text(7, 0.9, names[0], ha="center", va="center", fontsize=9.5, color=INK)
    if _UNTRAINED in levels:
        _label_untrained(axes[0], levels[_UNTRAINED])
    _label_areas(axes[1], levels[_OURS], names, words.label_ranks)
    _label_last_rank(axes[0], levels[_BASELINE])
    _label_last_rank(axes[1], levels[_OURS])
    label_shares(axes[0], "share of the test queries")

    title, subtitle = _title(levels, coarser[0]), _subtitle(results, words, coarser[0])
    figure.text(0.012, 0.96, title, fontsize=13.5, weight="bold", color=INK, va="top")
    figure.text(0.012, 0.815, subtitle, fontsize=9.5, color="#444444", va="center")
    figure.text(0.012, 0.045, _footnote(results, words), fontsize=8.5, color="#555555", va="center")
    figure.savefig(file, format="png")


def _label_areas(
    axes: Axes, levels: list[list[float]], names: Sequence[str], ranks: Sequence[int]
) -> None:
    """The names of the colours, each at its rank, where the area is wide enough."""
    for level, (name, rank) in enumerate(zip(names, ranks, strict=True)):
        height = levels[rank - 1][level]
        middle = sum(levels[rank - 1][level + 1 :]) + height / 2
        if height >= _THINNEST:
            axes.text(
                rank, middle, name, ha="center", va="center", fontsize=9.5,
                rotation=90 if rank == 1 else 0, color="white" if level >= len(names) - 2 else INK,
            )  # fmt: skip


def _label_last_rank(axes: Axes, levels: list[list[float]]) -> None:
    wrong = levels[-1][0]
    axes.text(
        len(levels) + 0.4, 1 - wrong / 2, f"{100 * wrong:.0f}% at rank {len(levels)}",
        ha="right", va="center", fontsize=9.5, weight="bold", color=INK,
    )  # fmt: skip


def _label_untrained(axes: Axes, levels: list[list[float]]) -> None:
    """Where the wrong chapters of TF-IDF begin."""
    edge = [1 - row[0] for row in levels]
    last = len(edge) + 0.5
    axes.step(
        [0.5, *(rank + 0.5 for rank in range(1, len(edge))), last], [*edge, edge[-1]],
        where="post", color=INK, lw=1.2, ls=(0, (3, 1.5)),
    )  # fmt: skip
    axes.text(last - 0.1, max(edge[-4:]) + 0.01, "TF-IDF, untrained", ha="right", va="bottom",
              fontsize=8.5, color=INK)  # fmt: skip


def _wrong(levels: list[list[float]]) -> str:
    return f"{100 * sum(row[0] for row in levels) / len(levels):.0f}%"


def _title(levels: dict[str, list[list[float]]], coarsest: str) -> str:
    return (
        f"Grain blindness: {_wrong(levels[_BASELINE])} of InfoNCE's top-10 results come "
        f"from a wrong {coarsest}.\nWith the multi-level ranking loss, "
        f"{_wrong(levels[_OURS])} do."
    )


def _subtitle(results: dict[str, Any], words: Words, coarsest: str) -> str:
    splits = [results["methods"][key]["splits"][_SPLIT] for key in (_BASELINE, _OURS)]
    recall, ndcg = (
        " and ".join(f"{100 * split['metrics'][metric]['mean']:.1f}" for split in splits)
        for metric in ("recall@1", NDCG)
    )
    text = f"{words.same}: {recall}.   nDCG@{TOP}[linear]: {ndcg}."
    if _GRADED not in results["methods"]:
        return text
    graded = results["methods"][_GRADED]["splits"][_SPLIT]
    return (
        f"{text}\nInfoNCE tuned for nDCG: {_wrong(graded['levels_by_rank'])} wrong {coarsest}s, "
        f"recall@1 {100 * graded['metrics']['recall@1']['mean']:.1f}, "
        f"nDCG {100 * graded['metrics'][NDCG]['mean']:.1f}."
    )


def _footnote(results: dict[str, Any], words: Words) -> str:
    ours = results["methods"][_OURS]
    seeds = len(ours["seeds"])
    return (
        "What stands at each rank, by the finest grain that it shares with the target: "
        f"{ours['splits'][_SPLIT]['queries']:,} {words.queries},\n"
        f"{results['data']['candidates']:,} {words.candidates}, "
        f"{f'mean of {seeds} seeds' if seeds > 1 else 'one seed'}. The taxonomy is given to the "
        f"multi-level loss only.   {words.command}"
    )
