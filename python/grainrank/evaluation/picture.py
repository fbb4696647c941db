"""The picture: what stands at each rank, by the finest grain that it shares with the query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK = "#222222"
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
    _panel(axes[0], report.top_hits_by_rank, colours, "as ranked")
    _panel(axes[1], report.best_by_rank, colours, "best possible order")
    axes[0].set_ylabel("share of the queries", color=_INK)
    axes[0].set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100%"])
    names = ["none of these", *(scores.name for scores in report.levels)]
    handles = [axes[0].patches[i * len(report.top_hits_by_rank)] for i in range(len(names))]
    figure.legend(
        handles, names[::-1], loc="center left", bbox_to_anchor=(0.81, 0.5), frameon=False
    )
    figure.text(
        0.08, 0.95, f"What stands at each rank, {report.top_queries:,} queries",
        fontsize=13, weight="bold", color=_INK, va="center",
    )  # fmt: skip
    figure.savefig(path, format="png")


def _panel(
    axes: Axes, at_least: tuple[tuple[float, ...], ...], colours: Sequence[object], title: str
) -> None:
    """Full-width bars, one for each rank, finest level at the bottom."""
    ranks = range(1, len(at_least) + 1)
    base = [0.0] * len(at_least)
    for level in reversed(range(len(colours))):
        tops = [row[level - 1] if level > 0 else 1.0 for row in at_least]
        heights = [top - b for top, b in zip(tops, base, strict=True)]
        axes.bar(ranks, heights, 1.0, base, color=colours[level], lw=0)
        base = tops
    axes.set_title(title, fontsize=11, loc="left", color=_INK)
    axes.set_xlim(0.5, len(at_least) + 0.5)
    axes.set_ylim(0, 1)
    axes.set_xticks(list(ranks))
    axes.tick_params(length=0, colors=_INK)
    axes.set_xlabel("rank", color=_INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
