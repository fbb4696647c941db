"""backend="cuda" without a GPU: the unchanged host code and kernels of kernels/cuda/ on ptxsim.

with simulated(80, seed=1):
    loss(queries, candidates, backend="cuda")  # CPU tensors
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from unittest import mock

from ptxsim.cuda import Device, build_module
from torch import Tensor

from grainrank import backends

__all__ = ["KERNELS", "module", "simulated"]

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "kernels" / "cuda"
BINDINGS = ROOT / "csrc" / "cuda_bindings.cpp"
# The modules that call it.
_IMPORTERS = ("cuda_launch", "cuda_levels", "cuda_passes", "cuda_ranks")


@functools.cache
def module(capability: int, replaced: Path | None = None) -> ModuleType:
    """`grainrank._cuda` on the simulator. replaced: a file in place of the one of the same name."""
    sources = [*sorted(KERNELS.glob("*.cu")), BINDINGS]
    if replaced is not None:
        sources = [replaced if path.name == replaced.name else path for path in sources]
    return build_module("grainrank._cuda", sources, [KERNELS, ROOT / "csrc"], capability)


def _span(tensor: Tensor) -> int:
    """Bytes that kernels may touch: rows of a block with what is between them."""
    size = tensor.element_size()
    if tensor.dim() == 2 and tensor.stride(1) == 1:
        return max(tensor.shape[0] * tensor.stride(0), tensor.numel()) * size
    return tensor.numel() * size


@contextmanager
def simulated(
    capability: int,
    seed: int = 0,
    native: ModuleType | None = None,
    names: Mapping[int, str] | None = None,
) -> Iterator[Device]:
    """Inside, backend="cuda" takes CPU tensors. Kernels may touch those that they are given.

    names: of the buffers at these addresses, read when a kernel is given one; else it is called
    by its shape and dtype.
    """
    native = native or module(capability)
    device = Device(native)
    device.options(seed=seed)
    device.clear()
    held: list[Tensor] = []  # so that no memory is used again under another name

    def pointer(tensor: Tensor | None) -> int:
        if tensor is None:
            return 0
        held.append(tensor)
        address = tensor.data_ptr()
        name = (names or {}).get(address, f"{tuple(tensor.shape)} {tensor.dtype}")
        device.register(address, _span(tensor), name)
        return address

    with mock.patch.dict(sys.modules, {"grainrank._cuda": native}), ExitStack() as patches:
        for name in _IMPORTERS:
            importer = importlib.import_module(f"grainrank.{name}")
            patches.enter_context(mock.patch.object(importer, "_cuda", native))
        for owner, name, value in (
            (sys.modules["grainrank.cuda_launch"], "pointer", pointer),
            (backends, "_cuda_error", lambda device_type: None),
        ):
            patches.enter_context(mock.patch.object(owner, name, value))
        yield device
    device.clear()
