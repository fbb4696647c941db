"""Real gloo processes on this machine, and what each of them returns."""

from __future__ import annotations

import datetime
import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = datetime.timedelta(seconds=60)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _start(
    rank: int, world: int, port: int, folder: str, timeout: Any, work: Callable[..., Any], args: Any
) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    # Memory that nobody wrote reads as NaN.
    torch.use_deterministic_algorithms(True)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timeout)
    try:
        torch.save(work(rank, world, *args), Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def run(
    world: int,
    work: Callable[..., Any],
    folder: Path,
    *args: Any,
    timeout: datetime.timedelta = TIMEOUT,
) -> list[Any]:
    """`work(rank, world, *args)` on `world` ranks, a function of a module; the results by rank."""
    folder.mkdir(parents=True, exist_ok=True)
    given = (world, _free_port(), str(folder), timeout, work, args)
    mp.spawn(_start, given, nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]
