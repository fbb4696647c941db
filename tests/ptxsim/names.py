"""Names of kernels as people write them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

__all__ = ["base_names"]


def base_names(symbols: Sequence[str]) -> list[str]:
    """`sum<true>` of `_ZN..3sumILb1EEEvPKfPfi`: no namespaces, no parameters. Other names stay."""
    if not symbols:
        return []
    text = "\n".join(symbols)
    done = subprocess.run(["c++filt"], input=text, check=True, capture_output=True, text=True)
    return [_base(line) for line in done.stdout.splitlines()]


def _base(declaration: str) -> str:
    text = declaration.replace("(anonymous namespace)::", "")
    start = depth = 0
    for i, character in enumerate(text):
        depth += (character == "<") - (character == ">")
        if depth > 0:
            continue
        if character == "(":
            return text[start:i]
        if character in " :":
            start = i + 1
    return text[start:]
