"""A Triton driver without a GPU: `kernel[grid](...)` on CPU tensors runs the PTX that Triton made.

    with use(80):
        kernel[(4,)](x, y, x.numel(), BLOCK=64)

Unlike TRITON_INTERPRET=1 this runs what the compiler made: layouts, mma and wgmma, cp.async
pipelines, barriers. It is written against the inside of Triton 3.9.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from .errors import SimulatorError
from .kernel import Buffer, Kernel, Launch, Options
from .triton_driver import DriverWithoutGPU, UtilitiesWithoutGPU, installed

__all__ = ["use"]

# The most shared memory that a block may have, by compute capability.
_SHARED_BYTES = {80: 166912, 86: 101376, 89: 101376, 90: 232448}
_devices = itertools.count(1000)
_FORMATS = {
    "i1": "b", "i8": "b", "u1": "B", "u8": "B", "i16": "h", "u16": "H", "i32": "i", "u32": "I",
    "i64": "q", "u64": "Q", "fp16": "e", "fp32": "f", "f32": "f", "fp64": "d",
}  # fmt: skip


def _scalar(kind: str, value: Any) -> bytes:
    if kind == "bf16":
        return struct.pack("<f", value)[2:]
    if kind not in _FORMATS:
        raise SimulatorError(f"kernel arguments of type {kind} are not simulated")
    if _FORMATS[kind] in "efd":
        return struct.pack(f"<{_FORMATS[kind]}", value)
    size = struct.calcsize(_FORMATS[kind])
    return (int(value) % (1 << 8 * size)).to_bytes(size, "little")


def _buffer(name: str, tensor: Tensor) -> Buffer:
    """The bytes that the tensor's elements span, whatever its storage has beside them."""
    if tensor.device.type != "cpu":
        raise SimulatorError(f"{name} must be a CPU tensor, got one on {tensor.device}")
    span = 0
    if tensor.numel() > 0:
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        span = (sum((size - 1) * stride for size, stride in steps) + 1) * tensor.element_size()
    return Buffer(tensor.data_ptr(), span, name)


class _Launcher:
    """Packs the arguments of a launch as Triton's own launcher does."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self._signature: Mapping[str, Any] = source.signature
        self._metadata = metadata

    def __call__(
        self,
        grid_x: int,
        grid_y: int,
        grid_z: int,
        stream: int,
        function: Kernel,
        kernel_metadata: Any,
        launch_metadata: Any,
        enter_hook: Any,
        exit_hook: Any,
        *arguments: Any,
    ) -> None:
        if self._metadata.num_ctas != 1:
            raise SimulatorError("clusters (num_ctas > 1) are not simulated")
        values: list[bytes] = []
        buffers: list[Buffer] = []
        for (name, kind), argument in zip(self._signature.items(), arguments, strict=True):
            _flatten(name, kind, argument, values, buffers)
        blocks = grid_x * grid_y * grid_z
        if blocks == 0:
            return
        scratch = torch.zeros(blocks * self._metadata.global_scratch_size, dtype=torch.uint8)
        if scratch.numel() > 0:
            buffers.append(_buffer("global scratch", scratch))
            values.append(struct.pack("<Q", scratch.data_ptr()))
        launch = Launch(
            (grid_x, grid_y, grid_z),
            (self._metadata.num_warps * self._metadata.warp_size, 1, 1),
            self._metadata.shared,
        )
        active = driver.active
        options = active.options if isinstance(active, _SimulatorDriver) else Options()
        function.launch(launch, values, buffers, options)


def _flatten(
    name: str, kind: Any, argument: Any, values: list[bytes], buffers: list[Buffer]
) -> None:
    if isinstance(kind, tuple):
        for i, (inner, part) in enumerate(zip(kind, argument, strict=True)):
            _flatten(f"{name}[{i}]", inner, part, values, buffers)
    elif kind == "constexpr":
        return
    elif not kind.startswith("*"):
        values.append(_scalar(kind, argument))
    elif argument is None:
        values.append(bytes(8))
    else:
        tensor = argument if isinstance(argument, Tensor) else argument.base
        buffers.append(_buffer(name, tensor))
        values.append(struct.pack("<Q", tensor.data_ptr()))


class _Utilities(UtilitiesWithoutGPU):
    def __init__(self, capability: int, edit: Callable[[str], str] | None) -> None:
        super().__init__(_SHARED_BYTES[capability])
        self._edit = edit
        self.ptx = ""
        self._loaded: dict[str, Kernel] = {}

    def load_binary(
        self, name: str, binary: bytes, shared_bytes: int, device: int
    ) -> tuple[None, Kernel, int, int, int]:
        """Loads the PTX that the hook kept; without a module Triton has nothing to unload."""
        if self.ptx not in self._loaded:
            ptx = self.ptx if self._edit is None else self._edit(self.ptx)
            self._loaded[self.ptx] = Kernel(ptx, name)
        return None, self._loaded[self.ptx], 0, 0, 1024


class _SimulatorDriver(DriverWithoutGPU):
    launcher_cls: ClassVar[type[_Launcher]] = _Launcher

    def __init__(
        self, capability: int, options: Options, edit: Callable[[str], str] | None
    ) -> None:
        # A device for each capability, and for each edit.
        device = capability if edit is None else next(_devices)
        super().__init__(GPUTarget("cuda", capability, 32), device)
        self.options = options
        self.utils = _Utilities(capability, edit)

    def get_benchmarker(self) -> Callable[..., Sequence[float]]:
        """Each configuration of an autotuner runs once, and all count as equally fast."""

        def benchmark(
            call: Callable[[], Any], quantiles: Sequence[float] = (0.5,), **_: Any
        ) -> Sequence[float]:
            call()
            return [1.0] * len(quantiles)

        return benchmark

    def get_empty_cache_for_benchmark(self) -> Tensor:
        return torch.zeros(1)

    def clear_cache(self, cache: Tensor) -> None:
        pass


@contextmanager
def use(
    cc: int,
    seed: int = 0,
    races: bool = True,
    initialised: bool = True,
    edit: Callable[[str], str] | None = None,
) -> Iterator[None]:
    """Inside, Triton compiles for compute capability `cc` (80, 86, 89 or 90) and runs here.

    seed, races, initialised: as in `ptxsim.Options`. edit: what is done to the PTX of each kernel
    first, to plant a fault.
    """
    if cc not in _SHARED_BYTES:
        raise SimulatorError(f"cc must be one of {sorted(_SHARED_BYTES)}, got {cc}")
    simulator = _SimulatorDriver(cc, Options(seed, races, initialised), edit)

    def keep(files: Sequence[Path]) -> None:
        simulator.utils.ptx = next(f for f in files if f.suffix == ".ptx").read_text()

    with installed(simulator, keep):
        yield
