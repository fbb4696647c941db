"""A rank that dies is an error on the others, and the checkpoint is worth going on from."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import killed
from ranks.killed import WORLD

DEATHS = [("before-loss", 1), ("before-backward", 2)]
PATIENCE = 90  # seconds until a process that hangs is killed


def _run(work: Callable[..., None], *args: Any) -> list[int | None]:
    """The exit codes of the ranks, None of one that hung. Nobody is stopped because one failed."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = int(s.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=work, args=(rank, port, *args)) for rank in range(WORLD)]
    for process in ranks:
        process.start()
    codes = []
    for process in ranks:
        process.join(PATIENCE)
        codes.append(process.exitcode)
        if process.exitcode is None:
            process.kill()
            process.join()
    return codes


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of the runs in which a rank died."""
    found = []
    for dies, which in DEATHS:
        folder = tmp_path_factory.mktemp(dies)
        codes = _run(killed.with_one_that_dies, folder, dies, which)
        assert [code == 0 for code in codes] == [rank != which for rank in range(WORLD)], codes
        found.append(folder)
    return found


@pytest.mark.parametrize("i", range(len(DEATHS)), ids=[dies for dies, _ in DEATHS])
def test_the_others_end_with_an_error(i: int, folders: list[Path]) -> None:
    _, which = DEATHS[i]
    for rank in range(WORLD):
        if rank == which:
            assert not (folders[i] / f"said-{rank}.pt").exists()
            continue
        said, _ = torch.load(folders[i] / f"said-{rank}.pt")
        assert said.startswith("RuntimeError"), said
        assert "gloo" in said, said


def test_resumed_equals_a_run_without_a_break(folders: list[Path], tmp_path: Path) -> None:
    assert _run(killed.resumed, folders, tmp_path) == [0] * WORLD
    for rank in range(WORLD):
        whole, *resumed = torch.load(tmp_path / f"{rank}.pt")
        for other in resumed:
            assert other.keys() == whole.keys()
            for name, value in whole.items():
                # DDP's first step after a start sums in another order.
                torch.testing.assert_close(other[name], value, rtol=1e-12, atol=0, msg=name)
