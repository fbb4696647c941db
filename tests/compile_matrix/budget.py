"""What the kernels may cost: budget.json, written by collect.py from what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import triton

from .driver import TARGETS
from .facts import Facts

__all__ = ["REFRESH", "TOLERANCE", "over_budget", "read", "write"]

FILE = Path(__file__).parent / "budget.json"
REFRESH = "cd tests && TRITON_INTERPRET=0 python -m compile_matrix.collect --budget"
TOLERANCE = 0.1
SLACK = {"tile": 8, "loop": 2}  # instructions that may always be added: a tenth of few is none
Entry = Mapping[str, Any]


def read() -> dict[str, Any]:
    """`{"triton": version, "targets": {target: {"configuration/kernel": entry}}}`."""
    budget: dict[str, Any] = json.loads(FILE.read_text())
    return budget


def write(measured: Mapping[str, Mapping[str, Facts]]) -> None:
    """Replaces the entries of these targets. A line for each kernel, so that a diff shows which."""
    old = read()["targets"] if FILE.exists() else {}
    targets = []
    for target in TARGETS:
        entries = old.get(target, {})
        if target in measured:
            entries = {key: _entry(facts) for key, facts in measured[target].items()}
        lines = ",\n".join(
            f"   {json.dumps(key)}: {json.dumps(entry)}" for key, entry in sorted(entries.items())
        )
        targets.append(f'  "{target}": {{\n{lines}\n  }}')
    text = ",\n".join(targets)
    FILE.write_text(
        f'{{\n "triton": {json.dumps(triton.__version__)},\n "targets": {{\n{text}\n }}\n}}\n'
    )


def _entry(facts: Facts) -> Entry:
    return {
        "launch": facts.launch,
        "registers": facts.registers,
        "shared": facts.shared,
        "blocks": facts.blocks,
        "tile": facts.tile,
        "loop": facts.loop,
    }


def over_budget(facts: Facts, entry: Entry) -> Iterator[str]:
    """A sentence for each thing that is above its budget, or whose budget is out of date."""
    if facts.launch != entry["launch"]:
        yield (
            f"is launched as {facts.launch!r}, and its entry is stale: it is of "
            f"{entry['launch']!r}"
        )
        return
    allowed = int(entry["registers"] * (1 + TOLERANCE))
    if facts.registers > allowed:
        yield f"has {facts.registers} registers, allowed are {allowed} ({_recorded(entry)})"
    if facts.shared > entry["shared"]:
        yield f"has {facts.shared} bytes of shared memory, allowed are {entry['shared']}"
    if facts.blocks < entry["blocks"]:
        yield (
            f"leaves room for {facts.blocks} blocks on a multiprocessor at once, "
            f"at least {entry['blocks']} must fit"
        )
    for part, where in (("tile", "of a tile"), ("loop", "of a step of the product")):
        recorded: Mapping[str, int] = entry[part]
        counts: Mapping[str, int] = getattr(facts, part)
        for name, number in counts.items():
            before = recorded.get(name, 0)
            allowed = max(int(before * (1 + TOLERANCE)), before + SLACK[part])
            if number > allowed:
                yield (
                    f"has {number} instructions {where} of the class {name!r}, allowed are "
                    f"{allowed} ({before} when the budget was written)"
                )
        total, before = sum(counts.values()), sum(recorded.values())
        if total < before * (1 - TOLERANCE) - SLACK[part]:
            yield (
                f"has {total} instructions {where}, and its entry is stale: it has {before}; "
                f"keep the gain"
            )


def _recorded(entry: Entry) -> str:
    return f"{entry['registers']} when the budget was written"
