"""The ranks: those that torchrun has started, or gloo processes of our own."""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = 60  # seconds
_RESULT = "result.json"
# Imported once, by the process that the ranks are forked from.
_PRELOADED = ("torch.distributed.fsdp", "torch._dynamo", __name__)

Work = Callable[[Any], Any]  # of the group; what it returns is JSON


def started_by_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def joined() -> Iterator[Any]:
    """The group of the ranks of torchrun: nccl with a GPU for each, else gloo."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    backend = "gloo"
    if torch.cuda.is_available() and torch.cuda.device_count() >= ranks_here:
        backend = "nccl"
        torch.cuda.set_device(local)
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=TIMEOUT))
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def on_processes(world: int, work: Work) -> Any:
    """What `work(group)`, a function of a module, returns on rank 0 of `world` gloo processes.

    Raises:
        RuntimeError: an error on a rank, with its traceback.
        TimeoutError: no result within `TIMEOUT` seconds.
    """
    from torch.multiprocessing.spawn import (
        ProcessExitedException,
        ProcessRaisedException,
        start_processes,
    )

    method = "spawn"
    if "forkserver" in multiprocessing.get_all_start_methods():
        method = "forkserver"
        multiprocessing.set_forkserver_preload(list(_PRELOADED))
    # It has its port before anyone else can take it.
    store = _store(0, is_master=True)
    with tempfile.TemporaryDirectory() as folder:
        given = (world, store.port, folder, work)
        context = start_processes(_start, given, world, join=False, start_method=method)
        assert context is not None
        end = time.monotonic() + TIMEOUT
        try:
            while not context.join(timeout=max(0.0, end - time.monotonic())):
                if time.monotonic() >= end:
                    raise TimeoutError(f"no result of {world} processes within {TIMEOUT} seconds")
        except (ProcessRaisedException, ProcessExitedException) as error:
            raise RuntimeError(_first_error(Path(folder)) or str(error).strip()) from error
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
        return json.loads((Path(folder) / _RESULT).read_text(encoding="utf-8"))


def _store(port: int, is_master: bool) -> Any:
    timeout = datetime.timedelta(seconds=TIMEOUT)
    return dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", port, is_master=is_master, wait_for_workers=False, timeout=timeout
    )


def _first_error(folder: Path) -> str:
    """The others only say that they lost a rank."""
    errors = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.error")]
    return "" if not errors else "rank {1}: {2}".format(*min(errors))


def _start(rank: int, world: int, port: int, folder: str, work: Work) -> None:
    torch.set_num_threads(1)
    store = _store(port, is_master=False)
    timeout = datetime.timedelta(seconds=TIMEOUT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timeout)
    try:
        found = work(dist.group.WORLD)
        if rank == 0:
            (Path(folder) / _RESULT).write_text(json.dumps(found), encoding="utf-8")
        dist.barrier()
    except Exception:
        error = time.monotonic_ns(), rank, traceback.format_exc().strip()
        (Path(folder) / f"{rank}.error").write_text(json.dumps(error), encoding="utf-8")
        raise
    finally:
        dist.destroy_process_group()
