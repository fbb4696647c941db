"""The one table that the demo prints."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from .metrics import NDCG, TOP
from .task import Words


def table(results: dict[str, Any], splits: Sequence[str], words: Words) -> str:
    """Percentages, mean +- standard deviation over the seeds."""
    methods = results["methods"]
    labels = {key: _label(method) for key, method in methods.items()}
    columns = _columns(results)
    first = 2 + max(map(len, labels.values()))
    widths = [max(len(heading), len("50.0 +-0.5")) for _, heading in columns]
    lines = [
        " " * (first + sum(widths[:3]) + 8) + "wrong top hit still in the right",
        "  ".join([" " * first, *(h.rjust(w) for (_, h), w in zip(columns, widths, strict=True))]),
    ]
    for name in splits:
        queries = next(iter(methods.values()))["splits"][name]["queries"]
        lines.append(f"{words.headings[name]} ({queries:,} queries)")
        for key, method in methods.items():
            metrics = method["splits"][name]["metrics"]
            cells = [
                _cell(metrics[column]).rjust(w)
                for (column, _), w in zip(columns, widths, strict=True)
            ]
            lines.append("  ".join(["  " + labels[key].ljust(first - 2), *cells]))
    return "\n".join(lines)


def caption(results: dict[str, Any], splits: Sequence[str], words: Words) -> str:
    """What the figures are and what they are not."""
    data = results["data"]
    facts = words.facts.format(
        dropped=sum(data["near_duplicates_dropped"][name] for name in splits),
        queries=sum(data["queries"][name] for name in splits),
    )
    seeds = max(len(method["seeds"]) for method in results["methods"].values())
    spread = f"mean +- standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    others = "InfoNCE and TF-IDF are" if "tfidf" in results["methods"] else "InfoNCE is"
    coarse = {2: "two", 3: "three"}.get(len(data["grains"]) - 1, "other")
    text = (
        f"Percent, {spread}; {data['candidates']:,} candidates; {facts}. nDCG counts a "
        f"candidate's shared grains (0 to {len(data['grains'])}) as its gain: these are labels "
        f"that {others} not given. What the multi-level loss improves is that graded order: expect "
        "no better recall of it, differences of a point or two are noise of so few queries. The "
        f"last {coarse} columns look at a method's own wrong top hits only; results.json also has "
        f"the shares of all queries. {words.tuning}"
    )
    return textwrap.fill(text, 110)


def _columns(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Metric and heading; the coarser grains, fine to coarse, come last."""
    coarser = list(results["data"]["grains"])[-2::-1]
    return [
        ("recall@1", "recall@1"),
        (f"recall@{TOP}", f"recall@{TOP}"),
        (NDCG, f"nDCG@{TOP}[linear]"),
        *((f"wrong_top_in_{grain}", grain) for grain in coarser),
    ]


def _label(method: dict[str, Any]) -> str:
    if "temperature" not in method:
        return str(method["label"])
    return f"{method['label']} (t {method['temperature']}, {method['epochs']} ep.)"


def _cell(metric: dict[str, Any]) -> str:
    if metric["mean"] is None:
        return "-"
    mean = f"{100 * metric['mean']:.1f}"
    return mean if metric["std"] is None else f"{mean} +-{100 * metric['std']:.1f}"
