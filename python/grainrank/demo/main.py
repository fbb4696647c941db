"""The `demo` subcommand."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from ..console import positive
from ..data import icd10
from .examples import RULE, examples, examples_text
from .picture import draw
from .recipes import EPOCHS, methods, sweep
from .results import results
from .runs import run_all
from .table import caption, table
from .tune import SPLITS as VALIDATION_SPLITS
from .tune import tuning_table

SPLITS = ("test_seen", "test_unseen")
QUICK_SEEDS, QUICK_EPOCHS = 1, 5


def add_parser(commands: Any) -> None:
    """Adds `demo` to the subcommands of `python -m grainrank`."""
    parser = commands.add_parser(
        "demo",
        help="train a small text encoder with InfoNCE and with the multi-level loss",
        description="Trains the same small text encoder with InfoNCE and with the multi-level "
        "ranking loss on ICD-10-CM, then compares how they rank.",
    )
    parser.add_argument("--data", choices=["icd10"], default="icd10", help="data set")
    parser.add_argument("--seeds", type=positive, metavar="N", help="training seeds (default 3)")
    parser.add_argument("--epochs", type=positive, metavar="N", help=f"default {EPOCHS}")
    parser.add_argument("--out", type=Path, default=Path("demo-results"), metavar="DIR",
                        help="folder for results.json, the picture and the examples")  # fmt: skip
    parser.add_argument("--quick", action="store_true",
                        help=f"{QUICK_SEEDS} seed, {QUICK_EPOCHS} epochs")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print results.json, not the table")
    parser.add_argument("--tune", action="store_true",
                        help="instead, compare temperatures on the validation queries")  # fmt: skip
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit code of `python -m grainrank demo`."""
    start = time.monotonic()
    try:
        data = icd10.load()
    except (ModuleNotFoundError, RuntimeError) as error:
        print(f"grainrank demo: {error}", file=sys.stderr)
        return 1
    seeds = arguments.seeds or (QUICK_SEEDS if arguments.quick else 3)
    epochs = arguments.epochs or (QUICK_EPOCHS if arguments.quick else EPOCHS)
    if arguments.tune:
        compared = sweep(epochs)
        runs = run_all(data, compared, range(seeds), VALIDATION_SPLITS)
        print(tuning_table(data, compared, runs))
        return 0
    runs = run_all(data, methods(epochs), range(seeds), SPLITS)
    found = results(data, runs, SPLITS)
    found["examples"] = {"rule": RULE, "queries": examples(data, runs)}
    found["seconds"] = round(time.monotonic() - start, 1)
    saved = _save(found, arguments.out)
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        print(table(found, SPLITS), caption(found, SPLITS), sep="\n\n")
        print(f"\nSaved in {arguments.out}: {', '.join(saved)}")
    return 0


def _save(found: dict[str, Any], folder: Path) -> list[str]:
    """Names of the files; the picture is left out, and said so, where matplotlib is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    labels = {key: found["methods"][key]["label"] for key in ("infonce", "multi_level")}
    text = examples_text(found["examples"]["queries"], labels)
    (folder / "examples.txt").write_text(text, encoding="utf-8")
    saved = ["results.json", "examples.txt"]
    try:
        draw(found, folder / "grain_blindness.png")
    except ModuleNotFoundError as error:
        print(f"grainrank demo: no picture: {error}", file=sys.stderr)
        return saved
    return [*saved, "grain_blindness.png"]
