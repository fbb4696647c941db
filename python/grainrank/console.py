"""What the subcommands share: a table on the console, and a type of their options."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence

Headings = Sequence[str]
Cells = Sequence[Sequence[str]]


def positive(text: str) -> int:
    """An option's integer, 1 or more; a `type` for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def counted(number: int, name: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def terminal_width(most: int = 100) -> int:
    """Columns of the terminal, `most` at most and where there is none."""
    if not sys.stdout.isatty():
        return most
    return min(most, shutil.get_terminal_size((most, 24)).columns)


def show_pairs(
    pairs: Sequence[tuple[str, str]], width: int, style: Callable[[str], str] = lambda value: ""
) -> None:
    """Prints names and values, the values wrapped; `style`: rich's, of a value on a terminal."""
    first = max(len(name) for name, _ in pairs) + 2
    write = _rich_writer() or (lambda name, value, style: print(name + value))
    for name, value in pairs:
        # Names and addresses to copy stay in one piece.
        lines = textwrap.wrap(value, width - first, break_long_words=False, break_on_hyphens=False)
        for i, line in enumerate(lines or [""]):
            write((name if i == 0 else "").ljust(first), line, style(value))


def _rich_writer() -> Callable[[str, str, str], object] | None:
    """Writes a name in bold and a value in its style; None: no terminal, or no rich."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
        from rich.text import Text
    except ModuleNotFoundError:
        return None
    console = Console()
    return lambda name, value, style: console.print(
        Text.assemble((name, "bold"), (value, style)), soft_wrap=True
    )


def columns(headings: Headings, rows: Cells) -> str:
    """Columns of text, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (headings, *rows)
    )


def show_columns(
    headings: Headings, rows: Cells, width: int, style: Callable[[str], str] = lambda cell: ""
) -> None:
    """Prints the same, with rich on a terminal that has it; `style`: rich's, of a last cell."""
    if not (sys.stdout.isatty() and _show_rich(headings, rows, width, style)):
        print(columns(headings, rows))


def _show_rich(headings: Headings, rows: Cells, width: int, style: Callable[[str], str]) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ModuleNotFoundError:
        return False
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=True)
    for *cells, last in rows:
        # Plain: rich would read brackets in a name as markup.
        table.add_row(*map(Text, cells), Text(last, style=style(last)))
    Console(width=width).print(table)
    return True
