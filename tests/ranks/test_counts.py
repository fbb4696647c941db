"""What docs/distributed.md says of bytes and memory is in the result file, and of this code."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from ranks import processes

ROOT = Path(__file__).parents[2]
WORLD = 3


def _counts() -> Any:
    path = str(ROOT / "benchmarks")
    if path not in sys.path:
        sys.path.insert(0, path)
    return importlib.import_module("distributed_counts")


def count(rank: int, world: int, settings: list[tuple[Any, ...]]) -> Any:
    module = _counts()
    return module.count_on_rank(rank, world, [module.Setting(*s) for s in settings])


def committed() -> list[dict[str, Any]]:
    path = ROOT / "benchmarks" / "results" / "distributed-counts.json"
    steps: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["steps"]
    return steps


def test_the_document_shows_the_result_file() -> None:
    lines = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8").splitlines()
    cells = [[c.strip() for c in line.strip("| ").split("|")] for line in lines]
    rows = [c for c in cells if len(c) == 9 and c[1] in ("gather", "ring")]
    for row, step in zip(rows, committed(), strict=True):
        assert row[:3] == [step["direction"], step["transport"], step["dtype"]]
        worlds = [step["derived"][w] for w in ("8", "64", "512")]
        expected = [sum(w["sent"].values()) / 1e6 for w in worlds]
        expected += [w["peak_bytes"] / 2**20 for w in worlds]
        assert [float(cell) for cell in row[3:]] == pytest.approx(expected, rel=1e-3)


def test_the_formulas_of_the_result_file() -> None:
    module = _counts()
    for step in committed():
        setting = module.Setting(*(step[name] for name in module.Setting._fields))
        for world in ("8", "64", "512"):
            assert step["derived"][world]["sent"] == module.bytes_sent(setting, int(world))


def test_the_formulas_are_of_this_code(tmp_path: Path) -> None:
    """Small steps: the bytes are exact, and no rank sends another number."""
    module = _counts()
    settings = [tuple(s._replace(rows=24, features=16)) for s in module.SETTINGS]
    for of_rank in processes.run(WORLD, count, tmp_path, settings):
        for setting, (sent, _) in zip(settings, of_rank, strict=True):
            expected = module.bytes_sent(module.Setting(*setting), WORLD)
            assert sum(sent.values()) == sum(expected.values())


def test_a_ring_needs_no_more_memory_with_more_ranks() -> None:
    for step in committed():
        peaks = [count["peak_bytes"] for count in step["counted"].values()]
        embeddings = step["rows"] * step["features"] * 4
        if step["transport"] == "ring":
            assert abs(peaks[-1] - peaks[-2]) < 0.1 * embeddings
        else:
            assert peaks[-1] - peaks[-2] > 2 * embeddings
