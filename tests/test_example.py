"""The examples run and learn."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_two_tower(capsys: pytest.CaptureFixture[str]) -> None:
    train = runpy.run_path(str(EXAMPLES / "two_tower.py"))["train"]
    losses = train(steps=30, batch=128)
    assert losses[-1] < 0.5 * losses[0]
    assert "mean similarity by level 0" in capsys.readouterr().out
