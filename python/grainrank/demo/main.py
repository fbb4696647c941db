"""The `demo` subcommand."""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

from ..checkpoints import Checkpoints, FileError, require_room, write_atomically
from ..console import positive
from .examples import RULE, examples, examples_text
from .picture import draw
from .results import results
from .runs import run_all
from .table import caption, table
from .task import Task, Words
from .tune import SPLITS as VALIDATION_SPLITS
from .tune import tuning_table

SPLITS = ("test_seen", "test_unseen")
QUICK_SEEDS = 1


def add_parser(commands: Any) -> None:
    """Adds `demo` to the subcommands of `python -m grainrank`."""
    parser = commands.add_parser(
        "demo",
        help="train a small encoder with InfoNCE and with the multi-level loss",
        description="Trains the same small model with InfoNCE and with the multi-level ranking "
        "loss, then compares how they rank: a text encoder on ICD-10-CM, or a CLIP on emoji.",
    )
    parser.add_argument("--data", choices=["icd10", "emoji"], default="icd10",
                        help="data set (default icd10)")  # fmt: skip
    parser.add_argument("--seeds", type=positive, metavar="N", help="training seeds (default 3)")
    parser.add_argument("--epochs", type=positive, metavar="N",
                        help="default: as many as were tuned for the data set")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("demo-results"), metavar="DIR",
                        help="folder for results.json, the picture and the examples")  # fmt: skip
    parser.add_argument("--quick", action="store_true",
                        help=f"{QUICK_SEEDS} seed and fewer epochs: too few to tell the losses of "
                        "emoji apart")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print results.json, not the table")
    parser.add_argument("--tune", action="store_true",
                        help="instead, compare temperatures on the validation queries")  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit code of `python -m grainrank demo`."""
    start = time.monotonic()
    if arguments.tune and arguments.json:
        return _fail("--tune prints a table; leave out --json", code=2)
    try:
        task = _load(arguments.data)
    except (ModuleNotFoundError, RuntimeError) as error:
        return _fail(error)
    seeds = arguments.seeds or (QUICK_SEEDS if arguments.quick else 3)
    epochs = arguments.epochs or (task.quick_epochs if arguments.quick else task.epochs)
    checkpoints = Checkpoints(arguments.out / "checkpoints", "grainrank demo")
    methods, splits = task.methods(epochs), SPLITS
    if arguments.tune:
        methods, splits = task.sweep(epochs), VALIDATION_SPLITS
    try:
        if not arguments.tune:
            require_room(arguments.out / "results.json")
        runs = run_all(task, methods, range(seeds), splits, checkpoints)
    except FileError as error:
        return _fail(error)
    except KeyboardInterrupt:
        return _fail(f"stopped; the same command continues from {checkpoints.folder}", code=130)
    if arguments.tune:
        print(tuning_table(task, methods, runs))
        checkpoints.clear()
        return 0
    found = results(task, runs, SPLITS)
    found["examples"] = {"rule": RULE, "queries": examples(task, runs)}
    found["seconds"] = round(time.monotonic() - start, 1)
    failed = None
    try:
        with checkpoints.writing(arguments.out):
            saved = _save(found, task.words, arguments.out)
        checkpoints.clear()
    except FileError as error:
        failed = error  # the table is not lost
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        print(table(found, SPLITS, task.words), caption(found, SPLITS, task.words), sep="\n\n")
    if failed is not None:
        return _fail(failed)
    if not arguments.json:
        print(f"\nSaved in {arguments.out}: {', '.join(saved)}")
    return 0


def _fail(why: object, code: int = 1) -> int:
    print(f"grainrank demo: {why}", file=sys.stderr)
    return code


def _load(name: str) -> Task:
    if name == "icd10":
        from .icd10 import Icd10Task

        return Icd10Task()
    from .emoji import EmojiTask

    return EmojiTask()


def _save(found: dict[str, Any], words: Words, folder: Path) -> list[str]:
    """Names of the files; the picture is left out, and said so, where matplotlib is missing."""
    labels = {key: found["methods"][key]["label"] for key in ("infonce", "multi_level")}
    texts = {
        "results.json": json.dumps(found, indent=1) + "\n",
        "examples.txt": examples_text(found["examples"]["queries"], labels),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    picture = io.BytesIO()
    try:
        draw(found, words, picture)
    except ModuleNotFoundError as error:
        print(f"grainrank demo: no picture: {error}", file=sys.stderr)
        return [*texts]
    write_atomically(folder / "grain_blindness.png", picture.getbuffer())
    return [*texts, "grain_blindness.png"]
