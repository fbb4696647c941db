"""Runs pytest on a build of the package that sanitizers check (sanitize.sh): FOLDER ARGUMENTS.."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


def main(folder: str, *arguments: str) -> int:
    # An editable installation finds the package before any folder does.
    sys.meta_path[:] = [
        finder for finder in sys.meta_path if not type(finder).__module__.startswith("_editable")
    ]
    sys.path.insert(0, folder)
    native = str(importlib.import_module("grainrank._native").__file__)
    if not Path(native).is_relative_to(Path(folder).resolve()):
        print(f"grainrank._native must be that of {folder}, got {native}", file=sys.stderr)
        return 1
    return int(pytest.main(list(arguments)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
