"""A Triton driver of a GPU that is not there; written against the inside of Triton 3.9."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

__all__ = ["DriverWithoutGPU", "UtilitiesWithoutGPU", "installed"]


class UtilitiesWithoutGPU:
    """What Triton asks of a device; without a module it has nothing to unload."""

    def __init__(self, shared_bytes: int) -> None:
        self._shared_bytes = shared_bytes

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": self._shared_bytes,
            "multiprocessor_count": 108,
            "max_num_regs": 65536,
            "warpSize": 32,
        }

    def unload_module(self, module: None) -> None:
        pass


class DriverWithoutGPU:
    """Kernels take CPU tensors. Triton keeps loaded kernels by the number of the device."""

    def __init__(self, target: GPUTarget, device: int) -> None:
        self._target, self._device = target, device

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._device

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        return divmod(int(self._target.arch), 10)

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
def installed(
    without_gpu: DriverWithoutGPU, loading: Callable[[Sequence[Path]], None]
) -> Iterator[None]:
    """Inside, it is Triton's driver; `loading` gets the files of a kernel before it is loaded."""
    driver_before, hook_before = driver._active, knobs.runtime.kernel_load_start_hook

    def hook(
        module: Any, function: Any, name: str, metadata_group: Mapping[str, str], key: str
    ) -> None:
        loading([Path(path) for path in metadata_group.values()])

    driver.set_active(without_gpu)
    knobs.runtime.kernel_load_start_hook = hook
    try:
        yield
    finally:
        knobs.runtime.kernel_load_start_hook = hook_before
        driver._active = driver_before
