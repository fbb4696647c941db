"""The examples run and learn."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_two_tower(capsys: pytest.CaptureFixture[str]) -> None:
    train = runpy.run_path(str(EXAMPLES / "two_tower.py"))["train"]
    losses = train(steps=30, batch=128)
    assert losses[-1] < 0.5 * losses[0]
    assert "mean similarity by level 0" in capsys.readouterr().out


def test_lightning_two_tower() -> None:
    """The parameters, the temperature too, move, and the order of new pairs is better."""
    pytest.importorskip("lightning", reason="needs pip install lightning")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    train = runpy.run_path(str(EXAMPLES / "lightning_two_tower.py"))["train"]
    options = {"accelerator": "cpu", "enable_checkpointing": False, **quiet}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # on the number of workers
        first = train(1, limit_train_batches=1, **options)
        last = train(3, **options)
    assert last["loss"] < 0.6 * first["loss"]
    assert last["ndcg"] > first["ndcg"] + 0.2


@pytest.mark.parametrize("data", ["emoji", "pictures"])
def test_elva_grpo(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The policy leaves the supervised start, where its KL is 0."""
    main = runpy.run_path(str(EXAMPLES / "elva_grpo.py"))["main"]
    main(["--quick", "--data", data, "--curves", str(tmp_path / "curves.json")])
    assert "reinforcement" in capsys.readouterr().out
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert curves["KL"][0] == pytest.approx(0, abs=1e-5)
    assert curves["KL"][-1] > 1e-3
    assert all(0 <= value <= 1 for value in curves["ranking reward"])


def _train_distributed(*arguments: str, processes: int = 0) -> str:
    start = [sys.executable]
    if processes > 0:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*start, str(EXAMPLES / "train_distributed.py"), "--steps=12", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_train_distributed(tmp_path: Path) -> None:
    """The same losses on another number of processes, also after a restart from a checkpoint."""
    alone = _train_distributed().partition("loss")[2]
    before, after = map(float, alone.split(" -> "))
    assert after < before
    checkpoint = f"--checkpoint={tmp_path / 'model.pt'}"
    _train_distributed(checkpoint, "--steps=5", processes=2)
    together = _train_distributed(checkpoint, "--transport=ring", processes=3)
    assert together.startswith("processes: 3")
    assert list(map(float, together.partition("loss")[2].split(" -> "))) == pytest.approx(
        [before, after], abs=2e-5
    )
