"""A `Report` from the JSON of an evaluation."""

from __future__ import annotations

from typing import Any

from ..evaluation.report import LevelScores, Report


def report_from(found: dict[str, Any]) -> Report:
    """The inverse of `Report.to_dict`."""
    ndcg_name = next(key for key in found if key.startswith("ndcg"))
    return Report(
        queries=found["queries"],
        judged=found["judged_queries"],
        candidates=found["candidates"],
        max_level=found["max_level"],
        levels=tuple(_level(x) for x in found["by_level"]),
        ndcg=found[ndcg_name],
        ndcg_name=ndcg_name,
        hierarchical_ap=found["hierarchical_ap"],
        level_violation_rate=found["level_violation_rate"],
        top_queries=found["top_hits"]["queries"],
        wrong=found["top_hits"]["wrong"],
        top_hits_by_rank=tuple(map(tuple, found["top_hits_by_rank"])),
        best_by_rank=tuple(map(tuple, found["best_by_rank"])),
        ties=found["ties"],
        similarity=found["similarity"],
    )


def _level(found: dict[str, Any]) -> LevelScores:
    def at(metric: str) -> dict[int, float | None]:
        return {
            int(key.partition("@")[2]): value
            for key, value in found.items()
            if key.startswith(f"{metric}@")
        }

    plain = ("level", "name", "queries", "mrr", "map", "top_hit", "wrong_top_hit")
    return LevelScores(
        recall=at("recall"), success=at("success"), **{key: found[key] for key in plain}
    )
