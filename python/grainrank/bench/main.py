"""The `bench` subcommand."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch

from ..backends import auto_backend
from ..console import positive
from ..machine import gpus, instruction_sets, machine_header
from ..testing import Shape
from .losses import LOSSES
from .measure import Plan, check, measure
from .table import show
from .verify import Setting

OK, WRONG, FAILED, INTERRUPTED = 0, 1, 2, 130
DTYPES = ("float32", "bfloat16", "float16")
LEVELS, DIM = 3, 256
SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192, 16384)}
ROUNDS = {"cpu": 5, "cuda": 15}


def add_parser(commands: Any) -> None:
    """Adds `bench` to the subcommands of `python -m grainrank`."""
    parser = commands.add_parser(
        "bench",
        help="time a training step of a loss, and its peak memory, on this machine",
        description="Time and peak memory of one training step: grainrank, dense PyTorch, and the "
        "three bare products of the step. Each is compared with the reference before it is timed. "
        "Exit code 0: ok, 1: a result is WRONG and nothing was timed, 2: it could not run.",
    )
    parser.add_argument("--n", type=positive, nargs="+", metavar="N",
                        help="queries (default 512 1024 2048, on a GPU 4096 8192 16384)"
                        )  # fmt: skip
    parser.add_argument("--m", type=positive, nargs="+", metavar="M",
                        help="candidates, each with each N (default: as many as queries)"
                        )  # fmt: skip
    parser.add_argument("--dim", type=positive, nargs="+", default=[DIM], metavar="D",
                        help=f"features, each with each N (default {DIM})")  # fmt: skip
    parser.add_argument("--loss", choices=LOSSES, default=LOSSES[0], help=f"default {LOSSES[0]}")
    parser.add_argument("--levels", type=positive, metavar="L",
                        help=f"grains, of --loss {LOSSES[0]} (default {LEVELS})")  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0],
                        help=f"default {DTYPES[0]}")  # fmt: skip
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--rounds", type=positive, metavar="R",
                        help=f"default {ROUNDS['cpu']}, on a GPU {ROUNDS['cuda']}")  # fmt: skip
    parser.add_argument("--compile", action="store_true",
                        help="torch.compile of the dense step too: needs a compiler, and a minute"
                        )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, not the table")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="write the JSON to a file too, after each shape")  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit code of `python -m grainrank bench`."""
    try:
        found = _run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (OSError, RuntimeError, TypeError, ValueError, ImportError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"grainrank bench: {first}", file=sys.stderr)
        return FAILED
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)
    return OK if found["ok"] else WRONG


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    device = _device(arguments.device)
    if arguments.levels is not None and arguments.loss != "multi_level":
        raise ValueError(
            f"--levels is an option of --loss multi_level, got --loss {arguments.loss}; leave it "
            "out"
        )
    levels = arguments.levels or LEVELS
    setting = Setting(getattr(torch, arguments.dtype), device, levels)
    plan = Plan(arguments.loss, auto_backend(device.type), setting, arguments.compile)
    shapes = _shapes(arguments, device, levels)
    rounds = arguments.rounds or ROUNDS[device.type]
    found = _header(plan, arguments.dtype, rounds)
    found["wrong"] = {name: text for name, text in check(plan).items() if text}
    found["ok"] = not found["wrong"]
    _save(found, arguments.out)
    if not found["ok"]:
        return found
    for shape in shapes:
        _say(f"N {shape.N:,}, M {shape.M:,}, D {shape.D:,} ...")
        try:
            found["shapes"].append(measure(plan, shape, rounds))
        finally:
            _say("")
        _save(found, arguments.out)
    return found


def _device(name: str | None) -> torch.device:
    there = torch.cuda.is_available()
    device = torch.device(name or ("cuda" if there else "cpu"))
    if device.type not in SIZES:
        raise ValueError(f"--device must be cpu or cuda, got {name}")
    if device.type == "cuda":
        if not there:
            raise ValueError(f"--device {name} needs a GPU that PyTorch sees; leave it out")
        torch.cuda.set_device(device)
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def _header(plan: Plan, dtype: str, rounds: int) -> dict[str, Any]:
    device = plan.setting.device
    found: dict[str, Any] = {
        "command": "bench",
        "machine": {**machine_header(), "instruction_sets": instruction_sets(), "gpus": gpus()},
        "loss": plan.loss,
        "dtype": dtype,
        "levels": plan.setting.levels if plan.loss == "multi_level" else 1,
        "device": device.type,
        "backend": plan.backend,
        "rounds": rounds,
        "ok": False,
        "wrong": {},
        "shapes": [],
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _shapes(arguments: argparse.Namespace, device: torch.device, levels: int) -> list[Shape]:
    sizes = arguments.n or SIZES[device.type]
    pairs = list(itertools.product(sizes, arguments.m)) if arguments.m else [(n, n) for n in sizes]
    for n, m in pairs:
        if arguments.loss != "multi_level" and m < n:
            raise ValueError(
                f"--m must be N = {n} or more for --loss {arguments.loss}, where candidate i "
                f"belongs to query i, got {m}; swap --n and --m"
            )
    return [Shape(n, m, d, levels) for (n, m), d in itertools.product(pairs, arguments.dim)]


def _save(found: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _say(text: str) -> None:
    """What is being measured, on a terminal; it is gone when the table comes."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
