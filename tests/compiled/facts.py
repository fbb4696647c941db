"""What one compiled kernel needs and consists of, read from its machine code.

Instructions are counted as they stand in the code, once each, whatever loops make of them: the code
of a kernel is that of one tile.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass

from triton import knobs

from .compile_only import Compiled

__all__ = ["Facts", "facts_of"]


@dataclass(frozen=True)
class Facts:
    registers: int  #: of a thread: NVIDIA's, or VGPRs with AGPRs
    stack: int  #: bytes of a thread in memory: NVIDIA's stack, or AMD's scratch
    spills: int  #: instructions that spill (NVIDIA), or VGPRs that are spilled (AMD)
    shared: int  #: bytes of a block
    warps: int
    dot: str  #: what `tl.dot` multiplies: "bf16", "f16", "tf32", "f32", or "" without one
    products: dict[str, int]  #: instructions of tensor cores by kind
    instructions: dict[str, int]  #: by class
    more: dict[str, int]  #: of AMD: "agpr", "sgpr", "sgpr_spills" (to lanes of VGPRs)


def facts_of(kernel: Compiled) -> Facts:
    return _nvidia(kernel) if "cubin" in kernel.asm else _amd(kernel)


def _dot(ttir: str) -> str:
    found = re.search(r"tt\.dot .*?: tensor<\d+x\d+x(\w+)>", ttir)
    if found is None:
        return ""
    return "tf32" if "inputPrecision = tf32" in found[0] else found[1]


def _classes(opcodes: Counter[str], classes: dict[str, str], rest: str) -> dict[str, int]:
    """`classes`: patterns of whole opcodes; the first that matches counts."""
    patterns = {name: re.compile(pattern) for name, pattern in classes.items()}
    counts = dict.fromkeys((*classes, rest), 0)
    for opcode, count in opcodes.items():
        name = next((n for n, p in patterns.items() if p.fullmatch(opcode)), rest)
        counts[name] += count
    return counts


# SASS, without what follows the first dot.
_SASS = {
    "tensor core": r"[HIDQ]G?MMA|UTC\w*MMA",
    "async copy": r"LDGSTS|UTMALDG|UBLKCP",
    "shared": r"LDSM?|STSM?|ATOMS|LDTM|STTM",
    "global": r"LDG|STG|RED|ATOMG?|LD|ST",
    "spill": r"LDL|STL",
    "special function": r"MUFU|F2\w+|I2F\w*|FRND",
    "sync": r"U?BAR|U?DEPBAR|LDGDEPBAR|WARP\w+|SYNCS|BSYNC|BSSY|ARRIVES|MEMBAR|FENCE|UTCBAR|ERRBAR",
    "shuffle": r"SHFL|C?REDUX",
    "control": r"BRA|BRX|JMP|EXIT|CALL|RET|BREAK|YIELD|BMOV",
    "fp32": r"F(?!LO|ENCE)\w+|H(FMA|ADD|MUL|SET|MNMX)\w*",
}


def _nvidia(kernel: Compiled) -> Facts:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _run(knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        sass = _run(knobs.nvidia.nvdisasm.path, "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    opcodes = Counter(re.findall(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)[^;]*;", sass))
    opcodes.pop("NOP", None)
    ptx = kernel.asm["ptx"]
    kinds = {"mma": r"\bmma\.sync", "wgmma": r"\bwgmma\.mma_async", "tcgen05": r"\btcgen05\.mma"}
    return Facts(
        registers=int(found[1]),
        stack=int(found[2]),
        spills=opcodes["LDL"] + opcodes["STL"],
        shared=kernel.metadata.shared,
        warps=kernel.metadata.num_warps,
        dot=_dot(kernel.asm["ttir"]),
        products={kind: len(re.findall(pattern, ptx)) for kind, pattern in kinds.items()},
        instructions=_classes(opcodes, _SASS, "integer"),
        more={},
    )


def _run(*command: str) -> str:
    """What it prints; warnings stand in stderr."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


_GCN = {
    "tensor core": r"v_s?w?mfma\w*|v_wmma\w*",
    "async copy": r"\w+_lds_\w+",
    "shared": r"ds_(read|write|load|store|add|max)\w*",
    "global": r"(global|buffer|flat)_\w+",
    "spill": r"scratch_\w+",
    "special function": r"v_(exp|log|rcp|rsq|sqrt|cvt)_\w+",
    "sync": r"s_(barrier|wait\w*)",
    "shuffle": r"ds_\w*permute\w*|ds_swizzle\w*|\w+_dpp",
    "control": r"s_(cbranch\w*|branch|endpgm|setpc\w*|swappc\w*)",
    "fp32": r"v_(pk_)?(add|sub|mul|fma|mac|max3?|min3?|cmpx?_\w+|div_\w+)_f\d+\w*",
}


def _amd(kernel: Compiled) -> Facts:
    text = kernel.asm["amdgcn"]

    def count(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", text)
        assert found is not None, f"{name} is not in the metadata of {kernel.id}"
        return int(found[1])

    opcodes = Counter(re.findall(r"^\t([a-z]+_\w+)", text, re.MULTILINE))
    opcodes.pop("s_nop", None)
    kinds = {"mfma": "v_mfma_", "wmma": "v_wmma_"}
    return Facts(
        registers=count("vgpr_count"),
        stack=count("private_segment_fixed_size"),
        spills=count("vgpr_spill_count"),
        shared=kernel.metadata.shared,
        warps=kernel.metadata.num_warps,
        dot=_dot(kernel.asm["ttir"]),
        products={
            kind: sum(n for opcode, n in opcodes.items() if opcode.startswith(start))
            for kind, start in kinds.items()
        },
        instructions=_classes(opcodes, _GCN, "integer"),
        more={
            "agpr": count("agpr_count"),
            "sgpr": count("sgpr_count"),
            "sgpr_spills": count("sgpr_spill_count"),
        },
    )
