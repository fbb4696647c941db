"""What `bench` prints: a table, what the columns are, and why something was skipped."""

from __future__ import annotations

import textwrap
from typing import Any

from ..console import counted, show_columns, terminal_width
from .measure import LABELS, OURS, PRODUCTS

_HEADINGS = ("one training step", "ms", "x products", "x grainrank", "peak MiB")
_CAPTION = (
    "Forward and backward, medians of {rounds} in turn. bare products: the three torch.mm of "
    "a step, the floor. peak: over the inputs{apart}."
)


def show(found: dict[str, Any]) -> None:
    """Prints the table, with rich on a terminal that has it."""
    width = terminal_width()
    for line in title(found):
        print(textwrap.fill(line, width))
    print()
    if found["shapes"]:
        show_columns(_HEADINGS, _rows(found), width)
        print()
    for line in notes(found):
        print(textwrap.fill(line, width))


def title(found: dict[str, Any]) -> list[str]:
    machine = found["machine"]
    where = f"{machine['cpu']}, {counted(machine['threads'], 'thread')}"
    if found["device"] != "cpu":
        where = found["gpu"]
    levels = f", {counted(found['levels'], 'level')}" if found["loss"] == "multi_level" else ""
    return [
        f"grainrank {machine['grainrank']}, torch {machine['torch']}; {where}",
        f"{found['loss']} loss{levels}, {found['dtype']}, backend {found['backend']}",
    ]


def _rows(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for shape in found["shapes"]:
        rows.append([f"N {shape['n']:,}, M {shape['m']:,}, D {shape['dim']:,}", "", "", "", ""])
        for name, x in shape["providers"].items():
            peak = x.get("peak_bytes")
            rows.append([
                f"  {LABELS[name]}",
                f"{1000 * x['median_seconds']:.1f}" if "median_seconds" in x else "skipped",
                _ratio(x.get(f"of_{PRODUCTS}")),
                _ratio(x.get(f"of_{OURS}")),
                "-" if peak is None else f"{peak / 2**20:,.1f}",
            ])  # fmt: skip
    return rows


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def notes(found: dict[str, Any]) -> list[str]:
    """What is below the table."""
    apart = "" if found["device"] != "cpu" else ", of one step in a process of its own"
    lines = (
        [_CAPTION.format(rounds=counted(found["rounds"], "round"), apart=apart)]
        if found["shapes"]
        else []
    )
    for shape in found["shapes"]:
        for name, x in shape["providers"].items():
            for key, what in (("skipped", "skipped"), ("peak_skipped", "no peak")):
                if key in x:
                    lines.append(f"{LABELS[name]}, N {shape['n']:,}: {what}: {x[key]}")
    for name, wrong in found["wrong"].items():
        lines += [f"{LABELS[name]} is WRONG: {text}" for text in wrong]
    if not found["ok"]:
        lines.append("Nothing is timed.")
    return lines
