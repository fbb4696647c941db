"""What one compiled kernel needs and consists of, read from its machine code.

Instructions are counted as they stand in the code, once each, whatever loops make of them: the code
of a kernel is that of one tile.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from typing import Any

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
    "sync": r"U?BAR|U?DEPBAR|LDGDEPBAR|WARP\w+|SYNCS|BSYNC|BSSY|ARRIVES|MEMBAR|FENCE|UTCBAR"
    r"|ERRBAR|ELECT",
    "shuffle": r"SHFL|C?REDUX",
    "control": r"BRA|BRX|JMP|EXIT|CALL|RET|BREAK|YIELD|BMOV",
    "fp32": r"F(?!LO|ENCE)\w+|H(FMA|ADD|MUL|SET|MNMX)\w*",
}


def _nvidia(kernel: Compiled) -> Facts:
    usage = _printed(knobs.nvidia.cuobjdump.path, "-res-usage", kernel.asm["cubin"])
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    opcodes = _sass_opcodes(kernel.asm["cubin"], kernel.target)
    opcodes.pop("NOP", None)
    kinds = {"mma": r"\bmma\.sync", "wgmma": r"\bwgmma\.mma_async", "tcgen05": r"\btcgen05\.mma"}
    ptx = kernel.asm["ptx"]
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


_opcode_names: dict[tuple[str, int], str] = {}


def _sass_opcodes(cubin: bytes, target: str) -> Counter[str]:
    """How often each opcode stands in the code.

    nvdisasm takes seconds for a kernel, more than all else here: so it names an opcode once, by one
    instruction that has it.
    """
    code = _code(cubin)
    instructions = [code[at : at + 16] for at in range(0, len(code), 16)]
    numbers = [int.from_bytes(word[:2], "little") & 0xFFF for word in instructions]
    example = dict(zip(numbers, instructions, strict=True))
    new = [number for number in example if (target, number) not in _opcode_names]
    if new:
        command = knobs.nvidia.nvdisasm.path, "-ndf", "-b", target.replace("sm_", "SM")
        text = _printed(*command, b"".join(example[number] for number in new))
        names = re.findall(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)[^;]*;", text)
        _opcode_names.update(zip(((target, n) for n in new), names, strict=True))
    return Counter(_opcode_names[target, number] for number in numbers)


def _code(cubin: bytes) -> bytes:
    """The sections .text.* of the ELF file."""
    (headers,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, headers + n * size) for n in range(count)]
    start = sections[names][4]
    return b"".join(
        cubin[at : at + length]
        for name, _, _, _, at, length in sections
        if cubin.startswith(b".text.", start + name)
    )


def _printed(*command: Any) -> str:
    """What a program prints about a file of the bytes at the end of the command."""
    *program, content = command
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        done = subprocess.run([*program, file.name], check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


_GCN = {
    "tensor core": r"v_s?mfmac?_\w+|v_wmma_\w+",
    "shared": r"ds_(read|write|load|store|add|max)\w*",
    "global": r"(global|buffer|flat)_\w+",
    "spill": r"scratch_\w+",
    "special function": r"v_(exp|log|rcp|rsq|sqrt|cvt)_\w+",
    "sync": r"s_(barrier|wait\w*)",
    "shuffle": r"ds_b?permute\w*|ds_swizzle\w*|v_permlane\w+|\w+_dpp",
    "control": r"s_(cbranch\w*|branch|endpgm|setpc\w*|swappc\w*)",
    "fp32": r"v_(pk_)?(add|sub|mul|fma|mac|max3?|min3?|cmpx?_\w+|div_\w+|ldexp)_f\d+\w*",
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
