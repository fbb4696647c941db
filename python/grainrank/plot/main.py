"""The `plot` subcommand."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import read_all

if TYPE_CHECKING:
    from ..demo.task import Words

OK, FAILED = 0, 2


def add_parser(commands: Any) -> None:
    """Adds `plot` to the subcommands of `python -m grainrank`."""
    parser = commands.add_parser(
        "plot",
        help="draw the picture of a JSON file that demo, evaluate or bench wrote",
        description="Draws the picture of a JSON file that demo, evaluate, bench or "
        "benchmarks/suite.py wrote; several files of bench go into one picture. Needs pip install "
        "'grainrank[plot]'. Exit code 0: ok, 2: it could not run.",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="JSON")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG", help="the picture")
    parser.add_argument("--json", action="store_true", help="print JSON, not a line")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit code of `python -m grainrank plot`."""
    try:
        command, found = read_all(arguments.files)
        _draw(command, found, arguments.out)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"grainrank plot: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    except (KeyError, IndexError, TypeError, AttributeError, StopIteration) as error:
        names = ", ".join(map(str, arguments.files))
        print(
            f"grainrank plot: {names}: not all that a file of {command} holds "
            f"({type(error).__name__}: {error}); run {command} again",
            file=sys.stderr,
        )
        return FAILED
    if arguments.json:
        files = [str(path) for path in arguments.files]
        print(json.dumps({"command": command, "files": files, "picture": str(arguments.out)}))
    else:
        print(f"Drawn in {arguments.out}: {command}")
    return OK


def _words(name: str) -> Words:
    """The texts of the demo's data set."""
    if name == "emoji":
        from ..demo.emoji import WORDS as EMOJI

        return EMOJI
    if name == "icd10":
        from ..demo.icd10 import WORDS as ICD10

        return ICD10
    raise ValueError(f"data.name must be icd10 or emoji, got {name!r}; run demo again")


def _draw(command: str, found: list[dict[str, Any]], path: Path) -> None:
    try:
        importlib.import_module("matplotlib")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plot needs matplotlib: pip install 'grainrank[plot]'") from error
    if command == "demo":
        from ..demo.picture import draw as draw_demo

        draw_demo(found[0], _words(found[0]["data"]["name"]), path)
    elif command == "evaluate":
        from ..evaluation.picture import draw as draw_evaluation
        from .report import report_from

        draw_evaluation(report_from(found[0]), path)
    elif command == "suite":
        from .suite_picture import draw as draw_suite

        draw_suite(found[0], path)
    else:
        from .bench_picture import draw as draw_bench

        draw_bench(found, path)
