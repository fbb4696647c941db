"""What `info` prints: less than a screen, to be copied into an issue."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..console import counted, show_pairs, terminal_width

_STYLES = {"ok": "green", "available": "green", "no: ": "yellow", "WRONG": "bold red",
           "failed": "bold red"}  # fmt: skip


def show(found: dict[str, Any]) -> None:
    """Prints names and values, with rich on a terminal that has it."""
    show_pairs(pairs(found), terminal_width(), _style)


def _style(value: str) -> str:
    return next((style for start, style in _STYLES.items() if value.startswith(start)), "")


def pairs(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values, line by line."""
    machine = found["machine"]
    sets = ", ".join(found["instruction_sets"]) or "no native library"
    return [
        ("grainrank", f"{machine['grainrank']}; torch {machine['torch']}, numpy {found['numpy']}, "
                      f"python {machine['python']}"),
        ("system", machine["system"]),
        ("processor", f"{machine['cpu']}, {counted(machine['cores'], 'core')}, "
                f"{counted(machine['threads'], 'torch thread')}; "
                f"{sets}"),
        *_gpus(found),
        *([] if found["distributed"] else [("distributed", "no: torch is built without it")]),
        *_libraries(found),
        *((name, _backend(name, x)) for name, x in found["backends"].items()),
        ("auto", ", ".join(f"{name} for {device} tensors" for device, name in
                           found["auto"].items())),
        *(("self-check", _self_check(x)) for x in found["self_checks"]),
    ]  # fmt: skip


def _gpus(found: dict[str, Any]) -> list[tuple[str, str]]:
    if not found["gpus"]:
        return [("gpu", f"none; {found['gpu_error']}")]
    alike = Counter(
        f"{x['name']}, {x['memory'] / 2**30:.1f} GiB, capability {x['capability']}"
        for x in found["gpus"]
    )
    return [("gpu", f"{n} x {text}" if n > 1 else text) for text, n in alike.items()]


def _libraries(found: dict[str, Any]) -> list[tuple[str, str]]:
    there = [f"{name} {version}" for name, version in found["optional"].items() if version]
    by_mend: dict[str, list[str]] = {}
    for name, mend in found["missing"].items():
        by_mend.setdefault(mend, []).append(name)
    return [
        *([("libraries", ", ".join(there))] if there else []),
        *(("missing", f"{', '.join(names)}: {mend}") for mend, names in by_mend.items()),
    ]


def _backend(name: str, found: dict[str, Any]) -> str:
    if not found["available"]:
        return f"no: {found['reason']}"
    return "available; stores the N x M matrix" if name == "reference" else "available"


def _self_check(found: dict[str, Any]) -> str:
    where = f"{found['backend']} on {found['device']}"
    why = found["explanation"] or "loss and gradients as of the reference in float64"
    return f"{found['verdict']} ({found['seconds']} s): {where}, {why}"
