"""A Triton driver that compiles for a GPU that is not here: launches are recorded, and do nothing.

    with compile_only("sm_90") as compiled:
        kernel[(4,)](x, y, x.numel(), BLOCK=64)
    compiled[0].asm["ptx"]

What is compiled is what a user's launch compiles: the same specialisation, the same options. It is
written against the inside of Triton 3.9.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

__all__ = ["TARGETS", "Compiled", "compile_only"]

TARGETS = {
    **{f"sm_{n}": GPUTarget("cuda", n, 32) for n in (80, 86, 89, 90, 100, 120)},
    **{name: GPUTarget("hip", name, 64) for name in ("gfx90a", "gfx942", "gfx950")},
}
# Triton keeps loaded kernels by device: one for each target, and none of another driver's.
_DEVICES = {target: 2_000_000 + n for n, target in enumerate(TARGETS)}
_OPTIONS = ("num_warps", "num_stages")


@dataclass(frozen=True)
class Compiled:
    """One specialisation of a kernel for one target."""

    name: str
    target: str
    launch: str  #: dtypes, compile-time constants and options
    asm: Mapping[str, Any]  #: ttir, ttgir, llir; ptx and cubin (bytes), or amdgcn and hsaco (bytes)
    metadata: Any


def _launch(source: Any, metadata: Any) -> str:
    """`bf16+fp32 KINDS=prefix LEVELS=4 BLOCK_R=64 num_warps=8 num_stages=3`."""
    words = ["+".join(dict.fromkeys(_floats(tuple(source.signature.values())))) or "integers"]
    names = list(source.signature)
    for (first, *rest), value in source.constants.items():
        if not rest and names[first].isupper():
            parts = value if isinstance(value, tuple) else (value,)
            words.append(f"{names[first]}={'+'.join(map(str, parts))}")
    words += [f"{option}={getattr(metadata, option)}" for option in _OPTIONS]
    return " ".join(words)


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
        assert isinstance(active, _Driver), "a kernel of compile_only was launched outside of it"
        metadata = self._metadata
        if all(kernel.metadata.hash != metadata.hash for kernel in active.compiled):
            launch = _launch(self._source, metadata)
            active.compiled.append(Compiled(metadata.name, active.name, launch, asm, metadata))


class _Utilities:
    """What Triton asks of a device. A kernel that needs too much is recorded, not refused."""

    def __init__(self) -> None:
        self.asm: dict[str, Any] = {}

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": 1 << 30,
            "multiprocessor_count": 108,
            "max_num_regs": 65536,
            "warpSize": 32,
        }

    def load_binary(
        self, name: str, binary: bytes, shared_bytes: int, device: int
    ) -> tuple[None, dict[str, Any], int, int, int]:
        """The "function" that the launcher gets is all that was compiled."""
        return None, self.asm, 0, 0, 1024

    def unload_module(self, module: None) -> None:
        pass


class _Driver:
    launcher_cls = _Launcher

    def __init__(self, name: str) -> None:
        self.name = name
        self.compiled: list[Compiled] = []
        self.utils = _Utilities()

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.name]

    def get_current_device(self) -> int:
        return _DEVICES[self.name]

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        return divmod(int(TARGETS[self.name].arch), 10)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind

    @staticmethod
    def is_active() -> bool:
        return True


@contextmanager
def compile_only(target: str) -> Iterator[list[Compiled]]:
    """Inside, kernels on CPU tensors are compiled for `target`, one of TARGETS, and do not run.

    The list has every specialisation that was launched, once, in the order of the first launches;
    also those that this process had compiled before.
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target}")
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET must be 0 where kernels are compiled, got 1")
    compiling = _Driver(target)
    driver_before, hook_before = driver._active, knobs.runtime.kernel_load_start_hook

    def keep_asm(
        module: Any, function: Any, name: str, metadata_group: Mapping[str, str], key: str
    ) -> None:
        paths = [Path(path) for path in metadata_group.values()]
        compiling.utils.asm = {
            kind: path.read_bytes() if kind in ("cubin", "hsaco") else path.read_text()
            for path in paths
            if (kind := path.suffix[1:]) != "json"
        }

    driver.set_active(compiling)
    knobs.runtime.kernel_load_start_hook = keep_asm
    try:
        yield compiling.compiled
    finally:
        knobs.runtime.kernel_load_start_hook = hook_before
        driver._active = driver_before
