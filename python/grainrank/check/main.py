"""The `check` subcommand."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from typing import Any

import numpy as np
import torch

from .._version import __version__
from ..console import positive
from .accuracy import check_accuracy
from .cases import check_own, fsdp_error
from .processes import joined, on_processes, started_by_torchrun
from .table import show

OK, WRONG, FAILED = 0, 1, 2


def add_parser(commands: Any) -> None:
    """Adds `check` to the subcommands of `python -m grainrank`."""
    parser = commands.add_parser(
        "check",
        help="compare losses and gradients with the reference, on one process or several",
        description="One process: the backend that this machine picks, against the reference. "
        "Several: the gradients under DDP and FSDP, against one process on the whole batch. Under "
        "torchrun it runs on torchrun's ranks. Exit code 0: all ok, 1: something is WRONG, 2: it "
        "could not run.",
    )
    parser.add_argument("--nproc", type=positive, metavar="W",
                        help="gloo processes to start (default 1)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, not the table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit code of `python -m grainrank check`."""
    start = time.monotonic()
    try:
        found = _found(arguments.nproc)
    except (OSError, RuntimeError, ValueError) as error:
        rank = f"rank {os.environ['RANK']}: " if started_by_torchrun() else ""
        print(f"grainrank check: {rank}{error}", file=sys.stderr)
        return FAILED
    ok = all(row["verdict"] == "ok" for row in found["rows"])
    versions = {
        "grainrank": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    seconds = round(time.monotonic() - start, 1)
    found = {"versions": versions, **found, "seconds": seconds, "ok": ok}
    if os.environ.get("RANK", "0") == "0":
        if arguments.json:
            print(json.dumps(found, indent=1))
        else:
            show(found)
    return OK if ok else WRONG


def _found(nproc: int | None) -> dict[str, Any]:
    """World size, device, dtype and rows."""
    if started_by_torchrun():
        world = int(os.environ["WORLD_SIZE"])
        if nproc not in (None, world):
            raise ValueError(
                f"--nproc must be torchrun's number of ranks, {world}, got {nproc}; leave it out"
            )
        if world > 1:
            with joined() as group:
                return _over_ranks(group)
    elif nproc is not None and nproc > 1:
        found: dict[str, Any] = on_processes(nproc, _over_ranks)
        return found
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = check_accuracy(device)
    return {"world_size": 1, "device": _name(device), "dtype": "float32, bfloat16", "rows": rows}


def _over_ranks(group: Any) -> dict[str, Any]:
    nccl = torch.distributed.get_backend(group) == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
    return {
        "world_size": torch.distributed.get_world_size(group),
        "device": f"{_name(device)}, {'nccl' if nccl else 'gloo'}",
        "dtype": "float32" if nccl else "float64",
        "rows": [verdict.row() for verdict in check_own(group, device.type)],
        "left_out": fsdp_error(device.type),
    }


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
