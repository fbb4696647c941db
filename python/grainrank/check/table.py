"""What the command prints: one table, and in words what is wrong."""

from __future__ import annotations

import textwrap
from typing import Any

from ..console import columns, show_columns

WIDTH = 100

_RATIOS = ("encoders", "cosine", "scale", "loss on ranks")
_ERRORS = ("loss", "gradients", "scale")
_CAPTION_RANKS = (
    "Gradient of the encoders: its length / that of one process on the whole batch, and the cosine "
    "between the two. Gradient of the scale (and bias), and loss, / the true one. ok: {rule}."
)
_CAPTION_ALONE = (
    "Largest error / largest element of the truth, the reference in float64, over 8 draws. ok: "
    "error <= 2 * (error of the reference in the same dtype + eps * largest element). For "
    "gradients over ranks: --nproc 4, or torchrun."
)


def show(found: dict[str, Any]) -> None:
    """Prints the table, with rich on a terminal that has it."""
    for line in title(found):
        print(line)
    show_columns(*_cells(found), WIDTH, lambda verdict: "green" if verdict == "ok" else "bold red")
    for line in notes(found):
        print(line)


def title(found: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    ranks = "1 process" if found["world_size"] == 1 else f"{found['world_size']} processes"
    return [f"{versions}; {ranks}, {found['device']}, {found['seconds']} s"]


def plain(found: dict[str, Any]) -> str:
    """Columns of text."""
    return columns(*_cells(found))


def notes(found: dict[str, Any]) -> list[str]:
    """The caption, and each explanation once, with the rows that it is about."""
    rows = found["rows"]
    if found["world_size"] == 1:
        caption = _CAPTION_ALONE
    else:
        exact = found["dtype"] == "float64"
        rule = "within 1e-9 (float64)" if exact else "by the rule of grainrank.testing (float32)"
        caption = _CAPTION_RANKS.format(rule=rule)
    lines = textwrap.wrap(caption, WIDTH)
    about: dict[str, list[str]] = {}
    for row in rows:
        if row["explanation"]:
            about.setdefault(f"{row['verdict']}: {row['explanation']}", []).append(row["case"])
    for text, cases in about.items():
        more = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
        lines += textwrap.wrap(f"{text} [{cases[0]}{more}]", WIDTH, subsequent_indent="  ")
    if found.get("left_out"):
        lines += textwrap.wrap(found["left_out"], WIDTH)
    wrong = sum(row["verdict"] != "ok" for row in rows)
    lines.append(f"{wrong} of {len(rows)} WRONG" if wrong else f"All {len(rows)} ok")
    return lines


def _cells(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    alone = found["world_size"] == 1
    headings = ["case", *(_ERRORS if alone else _RATIOS), "verdict"]
    cells = _errors if alone else _ratios
    return headings, [[row["case"], *cells(row), row["verdict"]] for row in found["rows"]]


def _errors(row: dict[str, Any]) -> list[str]:
    given = [row["loss_error"], row["gradient_error"], row["scale_error"]]
    return ["-" if x is None else f"{x:.0e}" for x in given]


def _ratios(row: dict[str, Any]) -> list[str]:
    low, high = _ratio(row["lowest_loss"]), _ratio(row["highest_loss"])
    ranks = low if low == high else f"{low} to {high}"
    return [_ratio(row["size"]), _ratio(row["cosine"], 3), _ratio(row["scale"]), ranks]


def _ratio(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
