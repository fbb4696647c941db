"""Bars of the levels at each rank, for the pictures of the demo and of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#222222"


def draw_bars(axes: Axes, shares: Sequence[Sequence[float]], colours: Sequence[object]) -> None:
    """Full-width bars, one for each rank, finest level at the bottom.

    `shares` `[ranks, L + 1]`: of the queries, with that level at that rank; `colours` `[L + 1]`.
    """
    ranks = range(1, len(shares) + 1)
    base = [0.0] * len(shares)
    for level in reversed(range(len(colours))):
        heights = [row[level] for row in shares]
        axes.bar(ranks, heights, 1.0, base, color=colours[level], lw=0)
        base = [b + h for b, h in zip(base, heights, strict=True)]
    axes.set_xlim(0.5, len(shares) + 0.5)
    axes.set_ylim(0, 1)
    axes.set_xticks(list(ranks))
    axes.tick_params(length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def label_shares(axes: Axes, text: str) -> None:
    """The axis on the left, in percent."""
    axes.set_ylabel(text, color=INK)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100%"])
