"""The picture of the suite: time and memory of a step over the batch, and where memory ran out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bench.measure import OURS, PRODUCTS
from ..bench.memory import OUT_OF_MEMORY
from ..level_bars import INK
from .bench_picture import loss_of, scales

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind tell apart; grainrank's ways share one.
_BLUE = "#0072b2"
_STYLES: dict[str, tuple[str, str, str]] = {
    OURS: (_BLUE, "o", "-"),
    "grainrank_fused": (_BLUE, "^", "--"),
    "grainrank_vendor": (_BLUE, "v", "-."),
    "grainrank_cuda": (_BLUE, "s", ":"),
    "dense": ("#e69f00", "s", "-"),
    "compiled": ("#d55e00", "D", "-"),
    "chunked": ("#009e73", "^", "-"),
    "linear_cross_entropy": ("#cc79a7", "v", "-"),
    "sentence_transformers_cached": ("#56b4e9", "P", "-"),
    "open_clip": ("#5d3a9b", "X", "-"),
    "liger": ("#d55e00", "^", "--"),
    "cut_cross_entropy": ("#009e73", "v", "--"),
    "cut_cross_entropy_exact": ("#009e73", "<", ":"),
    "inf_cl": ("#cc79a7", "D", "--"),
    "siglip_kernel": ("#56b4e9", "s", "--"),
    PRODUCTS: ("#8a8a8a", ".", ":"),
}
_OTHER = ("#333333", "o", "--")
_MEBIBYTE = 2**20
_HEAD = 0.9  # of a panel's height: crosses stand above
_STEP = 0.045  # between crosses of one size


def draw(found: dict[str, Any], path: Path) -> None:
    """Draws a suite's step times and peaks as PNG, a row of panels for each number of features.

    Raises:
        ValueError: nothing was measured.
    """
    from matplotlib.figure import Figure

    dims = sorted({shape["dim"] for shape in found["shapes"]})
    if not dims:
        raise ValueError("the file of the suite must hold a measured shape, got none; run it again")
    names = [name for name in found["labels"] if _measured(found, name)]
    legend_rows = -(-(len(names) + 1) // 4)
    height = 4.0 * len(dims) + 0.6 + 0.22 * legend_rows
    figure = Figure(figsize=(9.5, height), dpi=150, facecolor="white")
    rows = figure.subplots(len(dims), 2, squeeze=False)
    figure.subplots_adjust(
        left=0.08, right=0.975, top=1 - 0.75 / height, wspace=0.2, hspace=0.35,
        bottom=(0.75 + 0.22 * legend_rows) / height,
    )  # fmt: skip
    crossed = False
    for (time, memory), dim in zip(rows, dims, strict=True):
        shapes = [shape for shape in found["shapes"] if shape["dim"] == dim]
        of_dim = f", D = {dim}" if len(dims) > 1 else ""
        for axes, title, value in (
            (time, "time of a step, ms", _milliseconds),
            (memory, "extra memory, MiB", _mebibytes),
        ):
            for name in names:
                points = [(s["n"], value(s["providers"].get(name, {}))) for s in shapes]
                _line(axes, name, found["labels"][name], points)
            crossed |= _finish(axes, names, shapes)
            axes.set_title(title + of_dim, fontsize=11, loc="left", color=INK)
            axes.set_xlabel("N, pairs of a batch", color=INK)
    from matplotlib.lines import Line2D

    handles, labels = rows[0][0].get_legend_handles_labels()
    if crossed:
        handles.append(Line2D([], [], color=INK, marker="x", mew=2, ls=""))
        labels.append(_limit(found))
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=8.5)
    figure.text(
        0.012, 1 - 0.28 / height, _title(found, dims), fontsize=10.5, weight="bold", color=INK,
        va="center",
    )  # fmt: skip
    figure.savefig(path, format="png")


def _measured(found: dict[str, Any], name: str) -> bool:
    """Whether there is a point or a cross."""
    of_name = [shape["providers"].get(name, {}) for shape in found["shapes"]]
    return any("step" in x or "peak_bytes" in x or _ran_out(x) for x in of_name)


def _ran_out(of_name: dict[str, Any]) -> bool:
    return str(of_name.get("skipped", "")).startswith(OUT_OF_MEMORY)


def _milliseconds(of_name: dict[str, Any]) -> float | None:
    return 1000 * of_name["step"]["median_seconds"] if "step" in of_name else None


def _mebibytes(of_name: dict[str, Any]) -> float | None:
    peak = of_name.get("peak_bytes")
    return peak / _MEBIBYTE if peak else None


def _line(axes: Axes, name: str, label: str, points: list[tuple[int, float | None]]) -> None:
    colour, marker, style = _STYLES.get(name, _OTHER)
    known = sorted((n, y) for n, y in points if y is not None)
    axes.plot(
        [n for n, _ in known], [y for _, y in known], color=colour, marker=marker, ls=style,
        ms=4.5, lw=2.4 if name == OURS else 1.5, zorder=3 if name == OURS else 2, label=label,
    )  # fmt: skip


def _finish(axes: Axes, names: list[str], shapes: list[dict[str, Any]]) -> bool:
    """Scales, and a cross at the head of the panel for each size that a provider lacks memory for.

    Whether there is a cross.
    """
    sizes = sorted({shape["n"] for shape in shapes})
    if all(len(line.get_xdata(orig=True)) == 0 for line in axes.lines):  # type: ignore[arg-type]
        axes.text(0.5, 0.5, "not measured", ha="center", color=INK, transform=axes.transAxes)
        axes.set_axis_off()
        return False
    scales(axes, sizes)
    axes.set_xlim(sizes[0] / 1.2, sizes[-1] * 1.2)
    crosses = [
        (name, min(out))
        for name in names
        if (out := [s["n"] for s in shapes if _ran_out(s["providers"].get(name, {}))])
    ]
    if not crosses:
        return False
    most = max(sum(n == size for _, n in crosses) for size in sizes)
    low, high = axes.get_ylim()
    axes.set_ylim(low, low * (high / low) ** (1 / max(0.5, _HEAD - _STEP * most)))
    placed = dict.fromkeys(sizes, 0)
    for name, n in crosses:
        y = 0.97 - _STEP * placed[n]
        placed[n] += 1
        axes.plot(
            n, y, color=_STYLES.get(name, _OTHER)[0], marker="x", ms=7, mew=2, ls="",
            transform=axes.get_xaxis_transform(), scalex=False, scaley=False,
        )  # fmt: skip
    return True


def _limit(found: dict[str, Any]) -> str:
    limit = found["memory_limit_bytes"]
    return OUT_OF_MEMORY if limit is None else f"{OUT_OF_MEMORY} at {limit / 2**30:.3g} GiB"


def _title(found: dict[str, Any], dims: list[int]) -> str:
    machine = found["machine"]
    threads = machine["threads"]
    where = found.get("gpu") or f"{machine['cpu']}, {threads} thread{'s' * (threads != 1)}"
    features = [f"D = {dims[0]}"] if len(dims) == 1 else []
    return ", ".join(["One training step", where, loss_of(found), found["dtype"], *features])
