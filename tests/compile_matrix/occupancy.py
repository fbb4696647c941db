"""How many blocks of a kernel a multiprocessor holds at once, and what one block may have.

NVIDIA: CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability". AMD:
the CDNA 2 and 3 instruction set guides, and the CDNA 4 white paper for the LDS of gfx950.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["LIMITS", "Limits", "blocks"]

_KIB = 1024


class Limits(NamedTuple):
    registers: int  #: of a thread; AMD: VGPRs and AGPRs
    shared: int  #: bytes of a block
    shared_of_all: int  #: bytes of a multiprocessor
    warps: int  #: of a multiprocessor


LIMITS = {
    "sm_80": Limits(255, 163 * _KIB, 164 * _KIB, 64),
    "sm_86": Limits(255, 99 * _KIB, 100 * _KIB, 48),
    "sm_89": Limits(255, 99 * _KIB, 100 * _KIB, 48),
    "sm_90": Limits(255, 227 * _KIB, 228 * _KIB, 64),
    "sm_100": Limits(255, 227 * _KIB, 228 * _KIB, 64),
    "sm_120": Limits(255, 99 * _KIB, 100 * _KIB, 48),
    "gfx90a": Limits(512, 64 * _KIB, 64 * _KIB, 32),
    "gfx942": Limits(512, 64 * _KIB, 64 * _KIB, 32),
    "gfx950": Limits(512, 160 * _KIB, 160 * _KIB, 32),
}
_RESERVED = _KIB  # bytes that each block of NVIDIA's has beside its own
_TENSOR_MEMORY = 512  # columns of a multiprocessor, from sm_100 on
_PARTS = 4  # of a multiprocessor: each has a quarter of the registers, and whole warps


def blocks(target: str, registers: int, shared: int, warps: int, tensor_memory: int = 0) -> int:
    """0 where a single block is too large."""
    limits = LIMITS[target]
    if registers > limits.registers or shared > limits.shared:
        return 0
    amd = target.startswith("gfx")
    rounded = -(-max(registers, 1) // 8) * 8
    of_part = 512 // rounded if amd else 16384 // (rounded * 32)
    resident = min(_PARTS * of_part, limits.warps) // warps
    reserved = 0 if amd else _RESERVED
    if shared + reserved > 0:
        resident = min(resident, limits.shared_of_all // (shared + reserved))
    if tensor_memory > 0:
        resident = min(resident, _TENSOR_MEMORY // tensor_memory)
    return resident
