"""Ranks that train, one of which dies; and ranks that go on from the last checkpoint."""

from __future__ import annotations

import datetime
import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks.training import Case, Trainer, parts_of
from torch import Tensor, nn

WORLD, STEPS, LAST = 3, 6, 3  # LAST: the step in which a rank dies, counted from 0
TIMEOUT = datetime.timedelta(seconds=15)
CASE = Case("ddp", layout="uneven")


class _Dies(torch.autograd.Function):
    """A loss whose backward never comes on one rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def _train(trainer: Trainer, rank: int, steps: range, folder: Path | None, dies: str) -> None:
    for step in steps:
        batches = parts_of(CASE, WORLD, step, rank, torch.float64)
        if step == LAST and dies == "before-loss":
            os._exit(1)
        if step == LAST and dies == "before-backward":
            trainer.backward = lambda loss: _Dies.apply(loss).backward()  # type: ignore[no-untyped-call]
        trainer.gradients_of(batches)
        trainer.optimizer.step()
        if folder is not None and rank == 0:
            state = {
                "step": step + 1,
                "model": trainer.plain_model.state_dict(),
                "optimizer": trainer.optimizer.state_dict(),
            }
            # Never half a file.
            torch.save(state, folder / "new.pt")
            os.replace(folder / "new.pt", folder / "checkpoint.pt")


def _start(rank: int, port: int) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=WORLD, timeout=TIMEOUT)


def with_one_that_dies(rank: int, port: int, folder: Path, dies: str, which: int) -> None:
    """Leaves a checkpoint, and what the others say of the step in which `which` dies."""
    _start(rank, port)
    began = time.monotonic()
    try:
        _train(
            Trainer(CASE, torch.float64), rank, range(STEPS), folder, dies if rank == which else ""
        )
        said = "nothing"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    torch.save((said, time.monotonic() - began), folder / f"said-{rank}.pt")
    # Not through destroy_process_group, which may wait for the dead one.
    os._exit(0)


def resumed(rank: int, port: int, folders: list[Path], to: Path) -> None:
    """The parameters of a run without a break, and of those from the checkpoints of `folders`."""
    _start(rank, port)
    whole = Trainer(CASE, torch.float64)
    _train(whole, rank, range(STEPS), None, "")
    found = [whole.values()]
    for folder in folders:
        state = torch.load(folder / "checkpoint.pt")
        trainer = Trainer(CASE, torch.float64)
        with torch.no_grad():
            for parameter in trainer.parameters.values():
                nn.init.zeros_(parameter)
        trainer.plain_model.load_state_dict(state["model"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        assert state["step"] == LAST
        _train(trainer, rank, range(state["step"], STEPS), None, "")
        found.append(trainer.values())
    torch.save(found, to / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
