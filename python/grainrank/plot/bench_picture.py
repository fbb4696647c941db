"""The picture of benchmarks: time and peak memory of a training step over the batch size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..bench.measure import COMPILED, DENSE, LABELS, OURS, PRODUCTS
from ..console import counted
from ..level_bars import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {OURS: "#0b3c6f", DENSE: "#e8892b", COMPILED: "#a8443a", PRODUCTS: "#8a8a8a"}
_MARKERS = {OURS: "o", DENSE: "s", COMPILED: "D", PRODUCTS: "^"}
_LINES = ("-", "--", ":", "-.")
_PANELS = (
    ("median_seconds", 1000, "time of a training step, ms"),
    ("peak_bytes", 1 / 2**20, "peak memory over the inputs, MiB"),
)


class _Setting(NamedTuple):
    """What tells one line of a provider from another."""

    machine: str
    loss: str
    dtype: str
    dim: str
    m: str


Points = dict[int, dict[str, Any]]  # by N
_Lines = dict[tuple[_Setting, str], Points]


def draw(benches: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws what `bench` found, of several files the later one where both have a point, as PNG.

    Raises:
        ValueError: nothing was timed.
    """
    from matplotlib.figure import Figure

    lines = _merged(benches)
    if not lines:
        raise ValueError("the files of bench must hold a timed shape, got none; run bench again")
    settings = list(dict.fromkeys(setting for setting, _ in lines))
    figure = Figure(figsize=(9.5, 4.6), dpi=150, facecolor="white")
    axes = figure.subplots(1, 2)
    columns = 4 if len(lines) <= 4 else 3
    rows = -(-len(lines) // columns)
    figure.subplots_adjust(
        left=0.075, right=0.985, top=0.85, bottom=0.15 + 0.045 * rows, wspace=0.2
    )
    for panel, (key, unit, name) in zip(axes, _PANELS, strict=True):
        for (setting, provider), points in lines.items():
            known = sorted((n, unit * x[key]) for n, x in points.items() if x.get(key))
            panel.plot(
                [n for n, _ in known], [y for _, y in known], color=_COLOURS[provider],
                marker=_MARKERS[provider], ls=_LINES[settings.index(setting) % len(_LINES)],
                ms=4.5, lw=1.8, label=_label(provider, setting, settings),
            )  # fmt: skip
        if all(len(line.get_xydata()) == 0 for line in panel.lines):
            panel.text(0.5, 0.5, "not measured", ha="center", color=INK, transform=panel.transAxes)
            panel.set_axis_off()
            continue
        scales(panel, sorted({n for points in lines.values() for n in points}))
        panel.set_title(name, fontsize=11, loc="left", color=INK)
        same = {setting.m for setting in settings} == {"M = N"}
        panel.set_xlabel("N = M, queries and candidates" if same else "N, queries", color=INK)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=columns, frameon=False, fontsize=9)
    figure.text(0.012, 0.955, _title(settings), fontsize=11, weight="bold", color=INK, va="center")
    figure.savefig(path, format="png")


def _merged(benches: Sequence[dict[str, Any]]) -> _Lines:
    lines: _Lines = {}
    for bench in benches:
        square = all(shape["m"] == shape["n"] for shape in bench["shapes"])
        for shape in bench["shapes"]:
            setting = _Setting(
                machine=bench.get("gpu") or bench["machine"]["cpu"],
                loss=loss_of(bench),
                dtype=bench["dtype"],
                dim=f"D {shape['dim']}",
                m="M = N" if square else f"M {shape['m']}",
            )
            for provider, found in shape["providers"].items():
                if provider in _COLOURS and "median_seconds" in found:
                    lines.setdefault((setting, provider), {})[shape["n"]] = found
    return lines


def loss_of(bench: dict[str, Any]) -> str:
    """Its name, and how many levels."""
    levels = f" of {counted(bench['levels'], 'level')}" if bench["loss"] == "multi_level" else ""
    return f"{bench['loss']} loss{levels}"


def scales(axes: Axes, sizes: list[int]) -> None:
    """Logarithmic, a tick for each size."""
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
    axes.minorticks_off()
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color="#dddddd", lw=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _label(provider: str, setting: _Setting, settings: list[_Setting]) -> str:
    """The provider, and what the settings do not have in common."""
    varies = [
        value
        for value, seen in zip(setting, zip(*settings, strict=True), strict=True)
        if len(set(seen)) > 1
    ]
    return ", ".join([LABELS[provider], *varies])


def _title(settings: list[_Setting]) -> str:
    """What they have in common."""
    shared = [seen[0] for seen in zip(*settings, strict=True) if len(set(seen)) == 1]
    return ", ".join(["One training step", *(x for x in shared if x != "M = N")])
