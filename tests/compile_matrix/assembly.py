"""Machine code as lists of instructions: what class each is of, and the loop of the product."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = [
    "GCN",
    "SASS",
    "Instruction",
    "count",
    "in_flight",
    "product_loop",
    "read_gcn",
    "read_sass",
]


class Instruction(NamedTuple):
    opcode: str
    operands: str
    labels: tuple[str, ...]  #: that stand before it


# Patterns of whole opcodes (of SASS: up to the first dot); the first that matches counts. What is
# left is "integer": arithmetic of addresses and masks, selections, moves.
SASS: Mapping[str, str] = {
    "tensor core": r"(UTC)?[A-Z]G?MMA",
    "async copy": r"LDGSTS|UTMALDG|UBLKCP",
    "shared memory": r"LDSM?|STSM?|ATOMS",
    "tensor memory": r"LDTM|STTM|UTCCP|UTCATOMSWS",
    "global memory": r"LDG|STG|RED|ATOMG?|LD|ST",
    "spill": r"LDL|STL",
    "mufu": r"MUFU|F2I|I2F|F2F|FRND",
    "sync": r"U?BAR|U?DEPBAR|LDGDEPBAR|WARP\w+|SYNCS|BSYNC|BSSY|MEMBAR|FENCE|UTCBAR|ELECT|ERRBAR"
    r"|CCTL|NANOSLEEP",
    "shuffle": r"SHFL|C?REDUX|VOTEU?|MATCH",
    "control": r"BRA|BRX|JMP|EXIT|CALL|RET|BREAK|YIELD|BMOV|BPT",
    "fp32": r"F(?!LO)\w+|H(FMA|ADD|MUL|SET|MNMX)\w*",
}
GCN: Mapping[str, str] = {
    "tensor core": r"v_s?mfma\w*|v_wmma\w*",
    "async copy": r"(buffer|global)_load\w*:lds|global_load_lds\w*",
    "shared memory": r"ds_(read|write|load|store|add|max|min)\w*",
    "global memory": r"(global|buffer|flat)_\w+",
    "spill": r"scratch_\w+",
    "scalar spill": r"v_(read|write)lane\w*",  # SGPRs kept in lanes of a VGPR
    "mufu": r"v_(exp|log|rcp|rsq|sqrt|cvt)_\w+",
    "sync": r"s_(barrier|wait\w*)",
    "shuffle": r"ds_\w*permute\w*|ds_swizzle\w*|v_permlane\w*|\w+_dpp",
    "control": r"s_(cbranch\w*|branch|endpgm|setpc\w*|swappc\w*)",
    "fp32": r"v_(pk_)?(add|sub|mul|fma|fmac|fmamk|mac|max3?|min3?|cmpx?_\w+|div_\w+|ldexp)_f\d+\w*",
}
_LEFT = "integer"
_PADDING = ("NOP", "s_nop")


def read_sass(text: str) -> list[Instruction]:
    """Of `nvdisasm -c`; without padding."""
    pattern = r"/\*[0-9a-f]+\*/\s+\{?\s*(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);"
    return _read(text, r"(\.L_\w+):", pattern)


def read_gcn(text: str) -> list[Instruction]:
    """Of Triton's amdgcn. A load that goes to shared memory directly ends in `:lds` here."""
    return [
        i._replace(opcode=f"{i.opcode}:lds") if i.operands.endswith(" lds") else i
        for i in _read(text, r"(\.LBB\w+):", r"\t([a-z]+_\w+)([^;\n]*)")
    ]


def _read(text: str, label: str, instruction: str) -> list[Instruction]:
    code: list[Instruction] = []
    labels: tuple[str, ...] = ()
    for line in text.split("\n"):
        if found := re.match(label, line):
            labels += (found[1],)
        elif (found := re.match(rf"\s*?{instruction}", line)) and found[1] not in _PADDING:
            code.append(Instruction(found[1], found[2].strip(), labels))
            labels = ()
    return code


def count(code: Sequence[Instruction], classes: Mapping[str, str]) -> dict[str, int]:
    """Instructions by class as they stand in the code, once each; classes without any left out."""
    counts = dict.fromkeys((*classes, _LEFT), 0)
    known: dict[str, str] = {}
    for opcode in (i.opcode.split(".")[0] for i in code):
        if opcode not in known:
            matching = (name for name, pattern in classes.items() if re.fullmatch(pattern, opcode))
            known[opcode] = next(matching, _LEFT)
        counts[known[opcode]] += 1
    return {name: number for name, number in counts.items() if number > 0}


def product_loop(code: Sequence[Instruction], tensor_core: str) -> Sequence[Instruction]:
    """The shortest loop with instructions of tensor cores, or else of fused multiply-adds.

    A loop is what lies between a label and a branch back to it.
    """
    at = {label: n for n, i in enumerate(code) for label in i.labels}
    loops = []
    for stop, i in enumerate(code):
        for label in re.findall(r"\.L\w+", i.operands):
            if at.get(label, stop + 1) < stop:
                loops.append(code[at[label] : stop + 1])
    for pattern in (tensor_core, r"FFMA2?|v_(pk_)?fmac?_f32\w*"):
        numbers = [sum(bool(re.match(rf"({pattern})\b", i.opcode)) for i in c) for c in loops]
        if any(numbers):
            return min((c for c, n in zip(loops, numbers, strict=True) if n > 0), key=len)
    return ()


def in_flight(loop: Sequence[Instruction]) -> int:
    """Of a loop of AMD: global loads of this round that nothing waits for before its first MFMA."""
    pending = 0
    for i in loop:
        if re.match(GCN["tensor core"], i.opcode):
            return pending
        if re.match(r"(buffer|global)_load", i.opcode):
            pending += 1
        elif i.opcode == "s_waitcnt" and (found := re.search(r"vmcnt\((\d+)\)", i.operands)):
            pending = min(pending, int(found[1]))
    return 0
