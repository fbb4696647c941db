"""The report as a table."""

from __future__ import annotations

import textwrap

from ..console import columns, show_columns
from .report import Report, Share

WIDTH = 110
_CAPTION = (
    "Percent. In each row a candidate is relevant from that level on. top hit: share of the "
    "{queries:,} queries with a candidate of the finest level whose first candidate is in the "
    "right group; wrong top hit: the same, of the {wrong:,} whose first candidate is not of the "
    "finest level: how bad the errors are, whatever their number."
)


def show(report: Report) -> None:
    """Prints the table, with rich on a terminal that has it."""
    print(_title(report), end="\n\n")
    show_columns(*_cells(report), WIDTH)
    print("", _graded(report), "", _caption(report), sep="\n")


def plain(report: Report) -> str:
    """Columns of text, and what stands around them."""
    parts = _title(report), columns(*_cells(report)), _graded(report), _caption(report)
    return "\n\n".join(parts)


def _title(report: Report) -> str:
    return (
        f"{report.judged:,} of {report.queries:,} queries, {report.candidates:,} candidates; "
        f"{report.similarity} similarity, ties: {report.ties}"
    )


def _graded(report: Report) -> str:
    """What all levels have in common."""
    ndcg = report.ndcg_name.replace("ndcg", "nDCG")
    return (
        f"{ndcg} {_percent(report.ndcg)}, hierarchical AP {_percent(report.hierarchical_ap)}, "
        f"pairs in the wrong order {_percent(report.level_violation_rate)}"
    )


def _caption(report: Report) -> str:
    text = _CAPTION.format(queries=report.top_queries, wrong=report.wrong)
    return textwrap.fill(text, WIDTH)


def _cells(report: Report) -> tuple[list[str], list[list[str]]]:
    ks = report.levels[0].recall
    headings = [
        "level",
        "queries",
        *(f"recall@{k}" for k in ks),
        *(f"success@{k}" for k in ks),
        *("MRR", "MAP", "top hit", "wrong top hit"),
    ]
    rows = []
    for x in report.levels:
        shares = (*x.recall.values(), *x.success.values(), x.mrr, x.map, x.top_hit, x.wrong_top_hit)
        rows.append([x.name, f"{x.queries:,}", *map(_percent, shares)])
    return headings, rows


def _percent(value: Share) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
