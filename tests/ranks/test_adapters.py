"""Adapters and cached gradients over gloo processes: those of one process on the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import adapters
from ranks.processes import run


@pytest.mark.parametrize("way", ["grad_cache", "plain", "cached"])
def test_gradients_are_those_of_one_process_on_the_whole_batch(way: str, tmp_path: Path) -> None:
    if way != "grad_cache":
        pytest.importorskip(
            "sentence_transformers", reason="needs the extra [st]", exc_type=ImportError
        )
    expected = adapters.gradients(0, 1, way)
    for found in run(2, adapters.gradients, tmp_path / "2", way):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_learned_temperature_of_the_loss_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip(
        "sentence_transformers", reason="needs the extra [st]", exc_type=ImportError
    )
    for error in run(2, adapters.learned_temperature, tmp_path):
        assert "make it a parameter of the model" in error
