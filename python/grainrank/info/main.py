"""The `info` subcommand."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .facts import facts
from .self_check import self_check
from .table import show

OK, WRONG, FAILED = 0, 1, 2


def add_parser(commands: Any) -> None:
    """Adds `info` to the subcommands of `python -m grainrank`."""
    parser = commands.add_parser(
        "info",
        help="versions, machine and backends, for an issue, and a self-check",
        description="Prints versions, the machine, which backends run here and why others do not, "
        "and a self-check of a second. Exit code 0: ok, 1: the self-check is WRONG, 2: it could "
        "not run.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not the lines")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit code of `python -m grainrank info`."""
    found = facts()
    found["self_checks"] = [self_check(device, name) for device, name in found["auto"].items()]
    verdicts = {x["verdict"] for x in found["self_checks"]}
    found["ok"] = verdicts == {"ok"}
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)
    if "WRONG" in verdicts:
        return WRONG
    return FAILED if "failed" in verdicts else OK
