"""How the Triton kernels are launched: a table by GPU, dtype, D and what a kernel keeps.

Nothing is tuned while a training step runs. The entries are chosen from what the compiler makes of
them (registers without spills, shared memory), not from timings: see docs/gpu.md.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import triton

from .batch import Batch
from .compilation import only_compiling


class Launch(NamedTuple):
    """A tile, and the resources of the program that computes it."""

    rows: int
    columns: int
    features: int  # at a time, of a product
    warps: int
    stages: int  # tiles of features in flight

    @property
    def arguments(self) -> dict[str, int]:
        return {
            "BLOCK_R": self.rows,
            "BLOCK_M": self.columns,
            "BLOCK_D": self.features,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


Width = Literal["wide", "middle", "narrow"]  # the more tables beside the tile, the narrower

# From here on taking the product again, for the gradient, costs more than writing and reading a row
# block: by the count of docs/gpu.md, not by a measurement.
FUSED_FEATURES = 2048
VENDOR: dict[Width, Launch] = {
    "wide": Launch(32, 64, 16, 8, 1),
    "middle": Launch(32, 64, 16, 8, 1),
    "narrow": Launch(32, 32, 16, 8, 1),
}
# float32 without tensor cores.
IEEE: dict[Width, Launch] = {
    "wide": Launch(32, 64, 16, 8, 2),
    "middle": Launch(32, 32, 16, 8, 2),
    "narrow": Launch(32, 32, 16, 8, 2),
}
# Of products on tensor cores; features of 16 bits.
NVIDIA: dict[Width, Launch] = {
    "wide": Launch(64, 128, 64, 8, 3),
    "middle": Launch(64, 64, 64, 8, 3),
    "narrow": Launch(64, 32, 64, 8, 3),
}
# Of compute capability 10: with its accumulators in a memory of their own, the compiler keeps to
# 128 registers.
BLACKWELL: dict[Width, Launch] = {**NVIDIA, "middle": NVIDIA["narrow"]}
AMD: dict[Width, Launch] = dict.fromkeys(NVIDIA, Launch(64, 64, 64, 4, 2))


def narrower(width: Width) -> Width:
    return "middle" if width == "wide" else "narrow"


def launch_for(precision: str, dtype: torch.dtype, features: int, width: Width) -> Launch:
    """`precision`: of `precision_of`; `features`: D."""
    if not precision:
        return VENDOR[width]
    if precision == "ieee" and dtype == torch.float32:
        launch = IEEE[width]
    else:
        launch = _table()[width]
        if dtype == torch.float32:
            launch = launch._replace(features=launch.features // 2)
    least = max(16, int(triton.next_power_of_2(features)))
    return launch._replace(features=min(launch.features, least))


def _table() -> dict[Width, Launch]:
    if triton.knobs.runtime.interpret:
        return NVIDIA
    target = triton.runtime.driver.active.get_current_target()
    if target.backend == "hip":
        return AMD
    return BLACKWELL if 100 <= target.arch < 120 else NVIDIA


def precision_of(batch: Batch) -> str:
    """The precision of the product in the kernel; "" where the vendor's library takes it.

    `auto` takes it in the kernel where tensor cores do, in float16 and bfloat16, and in float32
    where PyTorch was allowed to use tf32; up to a number of features. Several prefixes share one
    vendor product.
    """
    half = batch.queries.dtype in (torch.float16, torch.bfloat16)
    tf32 = batch.queries.dtype == torch.float32 and _tf32()
    if batch.product == "vendor":
        return ""
    if batch.product == "auto":
        long = batch.prefixes[-1] > FUSED_FEATURES
        if long or len(batch.prefixes) > 1 or not (half or tf32):
            return ""
    return "tf32" if tf32 else "ieee"


# Said, as the default differs between versions of Triton. A fused first step of a sum over threads,
# `a * b + shuffled(a * b)`, rounds differently in each of them: what is stored would depend on
# which thread is the last.
_OPTIONS = {"enable_fp_fusion": False}


def _tf32() -> bool:
    """Whether PyTorch was allowed to use it, and Triton can."""
    if not triton.knobs.runtime.interpret:
        target = triton.runtime.driver.active.get_current_target()
        if target.backend == "hip" and target.arch != "gfx942":
            return False
    matmul: Any = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):  # torch before 2.9
        return bool(matmul.allow_tf32)
    own = matmul.fp32_precision
    everywhere: Any = torch.backends
    return bool((everywhere.fp32_precision if own == "none" else own) == "tf32")


def run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launches a kernel on the current stream."""
    if only_compiling():
        kernel.warmup(*arguments, grid=grid, **constants, **_OPTIONS)
    else:
        kernel[grid](*arguments, **constants, **_OPTIONS)
