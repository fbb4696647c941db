"""What the machine code of the CUDA passes needs of a GPU, and how full that lets a GPU be."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ptxsim.names import base_names
from triton import knobs

__all__ = ["ARCHITECTURES", "Code", "built_module", "code_of", "nvcc_version", "occupancy"]

WARP = 32
RESERVED = 1 << 10  # bytes of shared memory of each block, from sm_80 on
REGISTERS = 64 << 10  # of a multiprocessor, everywhere
REGISTER_UNIT = 256  # of a warp
WARP_UNIT = 4  # warps share a multiprocessor's registers in its four parts


@dataclass(frozen=True)
class Multiprocessor:
    """What the blocks on it share (CUDA C++ Programming Guide, compute capabilities)."""

    shared: int  #: KB
    warps: int
    blocks: int
    reserved: int = RESERVED
    unit: int = 128  #: bytes in which shared memory is given out


ARCHITECTURES = {
    "sm_75": Multiprocessor(64, 32, 16, reserved=0, unit=256),
    "sm_80": Multiprocessor(164, 64, 32),
    "sm_86": Multiprocessor(100, 48, 16),
    "sm_89": Multiprocessor(100, 48, 24),
    "sm_90": Multiprocessor(228, 64, 32),
    "sm_100": Multiprocessor(228, 64, 32),
    "sm_120": Multiprocessor(100, 48, 24),
}


@dataclass(frozen=True)
class Code:
    registers: int  #: of a thread
    stack: int  #: bytes of a thread in memory; registers that spill lie there too
    shared: int  #: bytes of a block, static


def occupancy(architecture: str, code: Code, threads: int, dynamic_shared: int) -> float:
    """Resident warps of a multiprocessor, of those that it can have."""
    has = ARCHITECTURES[architecture]
    warps = -(-threads // WARP)
    registers = -(-code.registers * WARP // REGISTER_UNIT) * REGISTER_UNIT  # of a warp
    by_registers = REGISTERS // registers // WARP_UNIT * WARP_UNIT // warps
    shared = code.shared + dynamic_shared + has.reserved
    shared = -(-shared // has.unit) * has.unit
    by_shared = has.blocks if shared == 0 else (has.shared << 10) // shared
    return min(by_registers, by_shared, has.warps // warps, has.blocks) * warps / has.warps


def code_of(library: Path) -> dict[str, dict[str, Code]]:
    """By architecture and kernel, of a module or a static library."""
    command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(library)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, dict[str, Code]] = {}
    for part in re.split(r"^arch = ", done.stdout + done.stderr, flags=re.MULTILINE)[1:]:
        architecture = part.split()[0]
        kernels = re.findall(r"Function (.+):\n\s*(REG:.+)", part)
        names = base_names([name for name, _ in kernels])
        for name, (_, usage) in zip(names, kernels, strict=True):
            of = {key: int(n) for key, n in re.findall(r"(\w+):(\d+)", usage)}
            here = found.setdefault(architecture, {})
            if name in here:
                raise ValueError(f"{library} has several kernels named {name}")
            shared = of["SHARED"]
            # From sm_90 on the code has the reserved memory too, where it uses any.
            if shared > 0 and int(architecture[3:].rstrip("af")) >= 90:
                shared -= RESERVED
            here[name] = Code(of["REG"], of["STACK"] + of["LOCAL"], shared)
    return found


def built_module() -> Path | None:
    """The installed grainrank._cuda."""
    spec = importlib.util.find_spec("grainrank._cuda")
    return None if spec is None or spec.origin is None else Path(spec.origin)


def nvcc_version() -> str:
    """Of the nvcc on the PATH, or "" without one."""
    program = shutil.which("nvcc")
    if program is None:
        return ""
    text = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"\bV(\d+(?:\.\d+)+)", text)
    assert found is not None, text
    return found[1]
