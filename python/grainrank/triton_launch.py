"""How the Triton kernels are launched: a table by GPU, kind of product and width of the tables.

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


Width = Literal["wide", "middle", "narrow"]

VENDOR = Launch(32, 64, 16, 4, 1)
IEEE = Launch(32, 64, 32, 4, 2)  # float32 without tensor cores
# Of the product in the kernel, by bits of an element of the tensor cores: the more tables a kernel
# keeps beside the tile, the narrower this is.
NVIDIA: dict[int, dict[Width, Launch]] = {
    16: {
        "wide": Launch(64, 128, 64, 8, 3),
        "middle": Launch(64, 64, 64, 8, 3),
        "narrow": Launch(64, 32, 64, 8, 3),
    },
    32: {
        "wide": Launch(64, 128, 32, 8, 3),
        "middle": Launch(64, 64, 32, 8, 3),
        "narrow": Launch(64, 32, 32, 8, 3),
    },
}
AMD: dict[int, dict[Width, Launch]] = {
    16: dict.fromkeys(("wide", "middle", "narrow"), Launch(64, 64, 64, 4, 2)),
    32: dict.fromkeys(("wide", "middle", "narrow"), Launch(64, 64, 32, 4, 2)),
}


def launch_for(precision: str, bits: int, width: Width) -> Launch:
    """`precision`: of `precision_of`; `bits` of an element."""
    if not precision:
        return VENDOR
    if precision == "ieee" and bits == 32:
        return IEEE
    return (AMD if _backend() == "hip" else NVIDIA)[bits][width]


def _backend() -> str:
    if triton.knobs.runtime.interpret:
        return "cuda"
    return str(triton.runtime.driver.active.get_current_target().backend)


def precision_of(batch: Batch) -> str:
    """The precision of the product in the kernel; "" where the vendor's library takes it.

    `auto` takes it in the kernel where tensor cores do: in float16 and bfloat16, and in float32
    where PyTorch was allowed to use tf32. Several prefixes share one vendor product.
    """
    half = batch.queries.dtype in (torch.float16, torch.bfloat16)
    tf32 = batch.queries.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    if batch.product == "vendor":
        return ""
    if batch.product == "auto" and (len(batch.prefixes) > 1 or not (half or tf32)):
        return ""
    return "tf32" if tf32 else "ieee"


# Said, as the default differs between versions of Triton. A fused first step of a sum over threads,
# `a * b + shuffled(a * b)`, rounds differently in each of them: what is stored would depend on
# which thread is the last.
_OPTIONS = {"enable_fp_fusion": False}


def run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launches a kernel on the current stream."""
    if only_compiling():
        kernel.warmup(*arguments, grid=grid, **constants, **_OPTIONS)
    else:
        kernel[grid](*arguments, **constants, **_OPTIONS)
