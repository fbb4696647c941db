"""`killed_demo.py POINT PLACE ARGUMENT ...`: the demo on the tiny data, which kills itself as
`kill -9` does: at a step, before a file is flushed (fsync), or before it is put in its place
(replace); the PLACE-th time, or where the file has that name.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_icd10
import torch

from grainrank.__main__ import main
from grainrank.data import icd10
from grainrank.demo import loop, runs

point, place, *arguments = sys.argv[1:]
torch.set_num_threads(2)
tiny_icd10.shrink(setattr)
tiny = tiny_icd10.data()
icd10.load = lambda cache_dir=None: tiny
loop.EVERY = 0.0
count = 0


def dying(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        global count
        count += 1
        names = [Path(argument).name for argument in arguments if isinstance(argument, str | Path)]
        if place in (str(count), *names):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)

    return call


if point == "step":
    train = runs.run_side_by_side
    runs.run_side_by_side = lambda jobs, on_step: train(jobs, dying(on_step))
else:
    setattr(os, point, dying(getattr(os, point)))
sys.exit(main(["demo", *arguments]))
