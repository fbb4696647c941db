"""Reads the package's docstrings for mkdocstrings: examples, options, and comments of fields."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

_OPTION = re.compile(r"^(\w+(?:, \w+)*): ")


class Docstrings(griffe.Extension):
    """Changes docstrings before they are parsed as Google's style."""

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        if obj.docstring is not None:
            text = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
            if obj.name in ("SharedOptions", "ScaledOptions"):
                text = _with_options(text)
            obj.docstring.value = text
        elif obj.is_attribute and obj.lineno and isinstance(obj.filepath, Path):
            comment = _comment(loader.lines_collection[obj.filepath], obj.lineno - 1)
            if comment:
                obj.docstring = griffe.Docstring(comment, parent=obj, parser="google")


def _with_options(text: str) -> str:
    """The paragraph of options of a TypedDict as a section of its own."""
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if _OPTION.match(line)), None)
    if first is None:
        return text
    options = [f"    {line}" if line else line for line in lines[first:]]
    return "\n".join([*lines[:first], "Attributes:", *options])


def _comment(lines: list[str], index: int) -> str:
    """`#: text` at the end of the line, or on the lines above it."""
    _, found, here = lines[index].partition("#: ")
    if found:
        return here.strip()
    above: list[str] = []
    while index > 0 and lines[index - 1].strip().startswith("#: "):
        index -= 1
        above.insert(0, lines[index].strip()[3:])
    return " ".join(above)
