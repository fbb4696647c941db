"""`python -m grainrank`: the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ._version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns its exit code."""
    from .bench.main import add_parser as add_bench
    from .check.main import add_parser as add_check
    from .demo.main import add_parser as add_demo
    from .evaluation.main import add_parser as add_evaluate
    from .info.main import add_parser as add_info
    from .plot.main import add_parser as add_plot

    parser = argparse.ArgumentParser(
        prog="grainrank", description="In-batch multi-level ranking loss for embedding models."
    )
    parser.add_argument("--version", action="version", version=f"grainrank {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for add in (add_info, add_demo, add_check, add_evaluate, add_bench, add_plot):
        add(commands)
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        parser.exit(2, parser.format_help())
    return int(arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
