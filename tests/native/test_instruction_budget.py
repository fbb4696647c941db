"""docs/performance.md shows the budget of instructions, and the comparison with it can fail."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from native.instruction_budget import LESS, MORE, REFRESH, exceeded, not_comparable, read

ROOT = Path(__file__).parents[2]
NAME = "gradients rows (lse)"


@pytest.fixture
def budget() -> dict[str, Any]:
    return read()


def counts(budget: dict[str, Any], factor: float) -> Any:
    """As the budget has them, but for one pass."""
    found = copy.deepcopy(budget["instructions"])
    found["avx2"][NAME] *= factor
    return found


def test_the_document_shows_the_budget(budget: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    section = text.partition("## Instructions of the CPU passes")[2]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    assert rows[:2] == [["pass", "AVX2", "scalar"], ["---", "---", "---"]]
    avx2, scalar = (budget["instructions"][of_set] for of_set in ("avx2", "scalar"))
    assert [row[0] for row in rows[2:]] == list(avx2) == list(scalar)
    for name, *shown in rows[2:]:
        assert shown == [f"{avx2[name]:.3g}", f"{scalar[name]:.3g}"], name


@pytest.mark.parametrize("factor", [1 + 0.99 * MORE, 1.0, 1 - 0.99 * LESS])
def test_within_the_budget(budget: dict[str, Any], factor: float) -> None:
    assert exceeded(counts(budget, factor), budget["instructions"]) == []


@pytest.mark.parametrize(
    ("factor", "says"), [(1 + 1.01 * MORE, "allowed"), (1 - 1.01 * LESS, "to keep the gain")]
)
def test_not_within_the_budget(budget: dict[str, Any], factor: float, says: str) -> None:
    (wrong,) = exceeded(counts(budget, factor), budget["instructions"])
    assert wrong.startswith(f"{NAME} on avx2 executes ")
    assert says in wrong
    assert wrong.endswith(REFRESH)


def test_every_pass_has_a_budget_and_no_other(budget: dict[str, Any]) -> None:
    given = budget["instructions"]
    found = counts(budget, 1.0)
    found["avx2"]["new"] = found["avx2"].pop(NAME)
    assert exceeded(found, given) == [
        f"new on avx2 has no budget; to give it one: {REFRESH}",
        f"{NAME} on avx2 is in the budget alone; to remove it: {REFRESH}",
    ]


@pytest.mark.parametrize("what", ["machine", "compiler", "flags"])
def test_code_of_another_compiler_is_not_compared(budget: dict[str, Any], what: str) -> None:
    about = {**budget, "sets": ["avx2", "scalar"]}
    assert not_comparable(about, budget) is None
    reason = not_comparable({**about, what: "another"}, budget)
    assert reason == f"the budget is of {what} {budget[what]}, this is another"
    without = not_comparable({**about, "sets": ["scalar"]}, budget)
    assert without == "valgrind does not run avx2 on this machine"
