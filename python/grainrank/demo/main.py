"""The `demo` subcommand."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

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
        print("grainrank demo: --tune prints a table; leave out --json", file=sys.stderr)
        return 2
    try:
        task = _load(arguments.data)
    except (ModuleNotFoundError, RuntimeError) as error:
        print(f"grainrank demo: {error}", file=sys.stderr)
        return 1
    seeds = arguments.seeds or (QUICK_SEEDS if arguments.quick else 3)
    epochs = arguments.epochs or (task.quick_epochs if arguments.quick else task.epochs)
    if arguments.tune:
        compared = task.sweep(epochs)
        runs = run_all(task, compared, range(seeds), VALIDATION_SPLITS)
        print(tuning_table(task, compared, runs))
        return 0
    runs = run_all(task, task.methods(epochs), range(seeds), SPLITS)
    found = results(task, runs, SPLITS)
    found["examples"] = {"rule": RULE, "queries": examples(task, runs)}
    found["seconds"] = round(time.monotonic() - start, 1)
    saved = _save(found, task.words, arguments.out)
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        print(table(found, SPLITS, task.words), caption(found, SPLITS, task.words), sep="\n\n")
        print(f"\nSaved in {arguments.out}: {', '.join(saved)}")
    return 0


def _load(name: str) -> Task:
    if name == "icd10":
        from .icd10 import Icd10Task

        return Icd10Task()
    from .emoji import EmojiTask

    return EmojiTask()


def _save(found: dict[str, Any], words: Words, folder: Path) -> list[str]:
    """Names of the files; the picture is left out, and said so, where matplotlib is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    labels = {key: found["methods"][key]["label"] for key in ("infonce", "multi_level")}
    text = examples_text(found["examples"]["queries"], labels)
    (folder / "examples.txt").write_text(text, encoding="utf-8")
    saved = ["results.json", "examples.txt"]
    try:
        draw(found, words, folder / "grain_blindness.png")
    except ModuleNotFoundError as error:
        print(f"grainrank demo: no picture: {error}", file=sys.stderr)
        return saved
    return [*saved, "grain_blindness.png"]
