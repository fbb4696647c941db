"""Compiles Triton kernels for a GPU that is not here: their launches are recorded, and do nothing.

with compile_only("sm_90") as compiled:
    kernel[(4,)](x, y, x.numel(), BLOCK=64)
compiled[0].asm["ptx"]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptxsim.triton_driver import DriverWithoutGPU, UtilitiesWithoutGPU, installed
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

__all__ = ["TARGETS", "Compiled", "compile_only"]

TARGETS = {
    **{f"sm_{n}": GPUTarget("cuda", n, 32) for n in (80, 86, 89, 90, 100, 120)},
    **{name: GPUTarget("hip", name, 64) for name in ("gfx90a", "gfx942", "gfx950")},
}
# Triton keeps loaded kernels by device: one for each target, and none of ptxsim's.
_DEVICES = {target: 1_000_000 + n for n, target in enumerate(TARGETS)}


@dataclass(frozen=True)
class Compiled:
    """One specialisation of a kernel for one target."""

    name: str
    id: str  #: the name, and the types and compile-time constants of this specialisation
    target: str
    asm: Mapping[str, Any]  #: ttir, ttgir, llir; ptx and cubin (bytes), or amdgcn and hsaco (bytes)
    metadata: Any


def _id(name: str, source: Any) -> str:
    """`level_tables[bf16+fp32 prefix LEVELS=4 FULL]`; tiles are left out, they are tuned."""
    words = ["+".join(dict.fromkeys(_floats(tuple(source.signature.values()))))]
    names = list(source.signature)
    for (first, *rest), value in source.constants.items():
        constant = names[first]
        if rest or not constant.isupper() or constant.startswith("BLOCK") or not value:
            continue
        if isinstance(value, str):
            words.append(value)
        elif isinstance(value, tuple):
            words.append("+".join(str(part) for part in value))
        else:
            words.append(constant if value is True else f"{constant}={value}")
    return f"{name}[{' '.join(words)}]"


def _floats(kinds: tuple[Any, ...]) -> Iterator[str]:
    for kind in kinds:
        if isinstance(kind, tuple):
            yield from _floats(kind)
        elif kind.startswith(("*fp", "*bf")):
            yield kind[1:]


class _Launcher:
    def __init__(self, source: Any, metadata: Any) -> None:
        self._source, self._metadata = source, metadata

    def __call__(self, x: int, y: int, z: int, stream: int, asm: Any, *arguments: Any) -> None:
        active = driver.active
        assert isinstance(active, _CompilingDriver), "a kernel of compile_only was launched outside"
        metadata = self._metadata
        if all(kernel.metadata.hash != metadata.hash for kernel in active.compiled):
            id_ = _id(metadata.name, self._source)
            active.compiled.append(Compiled(metadata.name, id_, active.name, asm, metadata))


class _Utilities(UtilitiesWithoutGPU):
    """A kernel that needs too much is recorded, not refused."""

    def __init__(self) -> None:
        super().__init__(shared_bytes=1 << 30)
        self.asm: dict[str, Any] = {}

    def load_binary(
        self, name: str, binary: bytes, shared_bytes: int, device: int
    ) -> tuple[None, dict[str, Any], int, int, int]:
        """The "function" that the launcher gets is all that was compiled."""
        return None, self.asm, 0, 0, 1024


class _CompilingDriver(DriverWithoutGPU):
    launcher_cls = _Launcher

    def __init__(self, name: str) -> None:
        super().__init__(TARGETS[name], _DEVICES[name])
        self.name = name
        self.compiled: list[Compiled] = []
        self.utils = _Utilities()


@contextmanager
def compile_only(target: str) -> Iterator[list[Compiled]]:
    """Inside, kernels on CPU tensors are compiled for `target`, one of TARGETS, and do not run.

    The list has every specialisation that was launched, once, in the order of the first launches;
    also those that this process had compiled before.
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target}")
    compiling = _CompilingDriver(target)

    def keep(files: Sequence[Path]) -> None:
        binary = ("cubin", "hsaco")
        compiling.utils.asm = {
            kind: path.read_bytes() if kind in binary else path.read_text()
            for path in files
            if (kind := path.suffix[1:]) != "json"
        }

    with installed(compiling, keep):
        yield compiling.compiled
