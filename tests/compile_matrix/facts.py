"""What one compiled kernel needs and consists of, read from its machine code.

Instructions are counted as they stand in the code, once each: that is the code of one tile. Those
of the loop over the features, which runs once for each step of the product, are counted apart too.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from triton import knobs

from .assembly import GCN, SASS, count, in_flight, product_loop, read_gcn, read_sass
from .driver import Compiled
from .occupancy import blocks

__all__ = ["Facts", "facts_of"]


@dataclass(frozen=True)
class Facts:
    launch: str  #: dtypes, compile-time constants and options
    registers: int  #: of a thread; AMD: VGPRs with AGPRs
    stack: int  #: bytes of a thread in memory: NVIDIA's stack, or AMD's scratch
    spills: int  #: instructions that spill to memory
    shared: int  #: bytes of a block
    blocks: int  #: that a multiprocessor holds at once
    dot: str  #: dtype of the factors of `tl.dot`: "bf16", "f16", "tf32", "f32"; "" without one
    products: dict[str, int]  #: instructions of tensor cores by unit and dtype: {"mma.bf16": 32}
    in_flight: int  #: AMD: loads of the loop over the features still pending at its first product
    tile: dict[str, int]  #: instructions by class
    loop: dict[str, int]  #: of the loop over the features


def facts_of(kernel: Compiled) -> Facts:
    return _nvidia(kernel) if "cubin" in kernel.asm else _amd(kernel)


def _dot(ttir: str) -> str:
    found = re.search(r"tt\.dot .*?: tensor<\d+x\d+x(\w+)>", ttir)
    if found is None:
        return ""
    return "tf32" if "inputPrecision = tf32" in found[0] else found[1]


_PTX = {
    "mma": r"\bmma\.sync\.aligned\.m\d+n\d+k\d+\.row\.col\.f32\.(\w+)\.",
    "wgmma": r"\bwgmma\.mma_async\.sync\.aligned\.m\d+n\d+k\d+\.f32\.(\w+)\.",
    "tcgen05": r"\btcgen05\.mma\.cta_group::\d\.kind::(\w+)",
}


def _nvidia(kernel: Compiled) -> Facts:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _run(knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        sass = _run(knobs.nvidia.nvdisasm.path, "-c", "-ndf", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    registers, stack = map(int, found.groups())
    code = read_sass(sass)
    tile = count(code, SASS)
    metadata, ptx = kernel.metadata, kernel.asm["ptx"]
    kinds = (f"{unit}.{kind}" for unit, p in _PTX.items() for kind in re.findall(p, ptx))
    return Facts(
        launch=kernel.launch,
        registers=registers,
        stack=stack,
        spills=tile.get("spill", 0),
        shared=metadata.shared,
        blocks=blocks(
            kernel.target,
            registers,
            metadata.shared,
            metadata.num_warps,
            getattr(metadata, "tmem_size", None) or 0,
        ),
        dot=_dot(kernel.asm["ttir"]),
        products=dict(Counter(kinds)),
        in_flight=0,
        tile=tile,
        loop=count(product_loop(code, SASS["tensor core"]), SASS),
    )


def _run(*command: str) -> str:
    """What it prints; warnings stand in stderr."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _amd(kernel: Compiled) -> Facts:
    text: str = kernel.asm["amdgcn"]
    registers, stack = (
        _number(text, name) for name in ("vgpr_count", "private_segment_fixed_size")
    )
    code = read_gcn(text)
    tile = count(code, GCN)
    loop = product_loop(code, GCN["tensor core"])
    metadata = kernel.metadata
    return Facts(
        launch=kernel.launch,
        registers=registers,
        stack=stack,
        spills=max(tile.get("spill", 0), _number(text, "vgpr_spill_count")),
        shared=metadata.shared,
        blocks=blocks(kernel.target, registers, metadata.shared, metadata.num_warps),
        dot=_dot(kernel.asm["ttir"]),
        products=dict(Counter(_mfma([i.opcode for i in code]))),
        in_flight=in_flight(loop),
        tile=tile,
        loop=count(loop, GCN),
    )


def _number(text: str, name: str) -> int:
    found = re.search(rf"\.{name}:\s+(\d+)", text)
    assert found is not None, f"{name} is not in the metadata"
    return int(found[1])


def _mfma(opcodes: Sequence[str]) -> list[str]:
    """`v_mfma_f32_32x32x8bf16_1k` and `v_mfma_f32_32x32x8_bf16` are `mfma.bf16`."""
    found = (re.match(r"v_mfma_f32_\d+x\d+x\d+_?(b?x?f\d+)", opcode) for opcode in opcodes)
    return [f"mfma.{match[1]}" for match in found if match]
