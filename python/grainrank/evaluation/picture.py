"""The picture: what stands at each rank, by the finest grain that it shares with the query."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from ..level_bars import INK, draw_bars, label_shares
from .report import Report

_WRONG = "#e8892b"


def draw(report: Report, path: Path) -> None:
    """Shares of the queries at ranks 1 to 10, as ranked and in the best possible order, as PNG.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: no query has a candidate of the finest level.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "--picture needs matplotlib: pip install 'grainrank[plot]'"
        ) from error
    if report.top_queries == 0:
        raise ValueError(
            "--picture needs a query with a candidate of the finest level, got none; "
            "leave --picture out, or map the grades to fewer levels"
        )
    # Coarse to fine in rising blue, wrong in orange: apart in print and for the colour-blind.
    steps = [
        0.25 + 0.75 * level / max(report.max_level - 1, 1) for level in range(report.max_level)
    ]
    colours = [_WRONG, *map(colormaps["Blues"], steps if report.max_level > 1 else [1.0])]
    figure = Figure(figsize=(9, 4.2), dpi=150, facecolor="white")
    axes = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.08, right=0.8, top=0.84, bottom=0.12, wspace=0.08)
    for panel, at_least, title in (
        (axes[0], report.top_hits_by_rank, "as ranked"),
        (axes[1], report.best_by_rank, "best possible order"),
    ):
        draw_bars(panel, [_of_levels(row) for row in at_least], colours)
        panel.set_title(title, fontsize=11, loc="left", color=INK)
        panel.set_xlabel("rank", color=INK)
    label_shares(axes[0], "share of the queries")
    names = ["none of these", *(scores.name for scores in report.levels)]
    handles = [axes[0].patches[i * len(report.top_hits_by_rank)] for i in range(len(names))]
    figure.legend(
        handles, names[::-1], loc="center left", bbox_to_anchor=(0.81, 0.5), frameon=False
    )
    figure.text(
        0.08, 0.95, f"What stands at each rank, {report.top_queries:,} queries",
        fontsize=13, weight="bold", color=INK, va="center",
    )  # fmt: skip
    figure.savefig(path, format="png")


def _of_levels(at_least: Sequence[float]) -> list[float]:
    """Shares of the levels 0..L, from those of level 1..L or more."""
    return [a - b for a, b in pairwise((1.0, *at_least, 0.0))]
