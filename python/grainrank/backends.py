"""Which implementation runs a step, and the contract that all of them share."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .batch import Batch, Product
from .dense import (
    dense_gradients,
    dense_multi_level_nce,
    dense_sigmoid,
    dense_softplus,
    dense_tables,
)
from .row_blocks import Passes
from .sweep import (
    sweep_gradients,
    sweep_multi_level_nce,
    sweep_sigmoid,
    sweep_softplus,
    sweep_tables,
)
from .table_sets import Gradients, Needs, SigmoidResult, TableGradientSet, TableSet

if TYPE_CHECKING:
    from .ranks.passes import BlockPasses, TilePasses

Backend = Literal["auto", "reference", "cpu", "cuda", "triton"]
BACKENDS = ("auto", "reference", "cpu", "cuda", "triton")
OLDEST_TRITON = 3, 9  # that the kernels were tried with
_PASSES = {
    "cpu": ("grainrank.cpu", "CpuPasses"),
    "cuda": ("grainrank.cuda_passes", "CudaPasses"),
    "triton": ("grainrank.triton_passes", "TritonPasses"),
}
_RANK_PASSES = {
    "cpu": ("grainrank.cpu_ranks", "CpuRankPasses"),
    "cuda": ("grainrank.cuda_ranks", "CudaRankPasses"),
    "triton": ("grainrank.triton_ranks", "TritonRankPasses"),
}

logger = logging.getLogger("grainrank")


def check_backend(backend: str, device: torch.device) -> None:
    """Raises where an explicitly named backend cannot run on `device`; it never falls back."""
    if backend not in BACKENDS:
        allowed = ", ".join(repr(name) for name in BACKENDS)
        raise ValueError(f"backend must be one of {allowed}, got {backend!r}")
    if backend in _GPU_ERRORS:
        error = _GPU_ERRORS[backend](device.type)
        if error is not None:
            raise ValueError(f'backend="{backend}" {error}; or use backend="auto"')
    if backend == "cpu" and device.type != "cpu":
        raise ValueError(
            f'backend="cpu" needs CPU tensors, got queries on {device}; use backend="auto"'
        )


def check_product(product: Product, backend: str, dtype: torch.dtype, prefixes: int) -> None:
    """Raises where the product cannot be taken as asked for."""
    if product not in ("auto", "fused", "vendor"):
        raise ValueError(f"product must be 'auto', 'fused' or 'vendor', got {product!r}")
    if product == "auto":
        return
    if backend != "triton":
        raise ValueError(
            f'product="{product}" is an option of backend="triton", got backend="{backend}"; '
            f"name the backend, or leave product out"
        )
    if product == "fused" and dtype == torch.float64:
        raise ValueError(
            'product="fused" needs float16, bfloat16 or float32, got queries of torch.float64; '
            'use product="vendor"'
        )
    if product == "fused" and prefixes > 1:
        raise ValueError(
            f'product="fused" has one similarity for each pair, got {prefixes} matryoshka_dims; '
            f'use product="vendor", which shares one product between them'
        )


@functools.cache
def _native_error() -> str | None:
    """Why the C++ passes cannot be used, or None."""
    try:
        importlib.import_module("grainrank._native")
    except ImportError as error:
        return str(error)
    return None


@functools.cache
def _triton_version() -> str | None:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def _triton_error(device_type: str) -> str | None:
    """Why Triton cannot run on tensors of a device, and the mend; or None."""
    version = _triton_version()
    if version is None:
        return "needs Triton, which is not installed: pip install 'grainrank[triton]'"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return f"needs Triton {oldest} or newer, got {version}: pip install -U triton"
    triton = importlib.import_module("triton")
    if triton.knobs.runtime.interpret:  # TRITON_INTERPRET=1: for tests, on any device
        return None
    try:
        runs_on = triton.runtime.driver.active.get_active_torch_device().type
    except RuntimeError:  # no driver, no GPU
        runs_on = None
    if runs_on == device_type:
        return None
    return f"needs tensors on a GPU that Triton supports, got queries on {device_type}"


def _cuda_error(device_type: str) -> str | None:
    """Why the CUDA C++ passes cannot run on tensors of a device, and the mend; or None."""
    try:
        importlib.import_module("grainrank._cuda")
    except ImportError as error:
        return (
            f"is not part of this installation ({error}): reinstall grainrank with nvcc on the "
            "PATH and GRAINRANK_CUDA=ON"
        )
    if device_type == "cuda" and torch.version.hip is None:
        return None
    return f"needs tensors on an NVIDIA GPU, got queries on {device_type}"


_GPU_ERRORS: dict[str, Callable[[str], str | None]] = {
    "triton": lambda device_type: _triton_error(device_type),
    "cuda": lambda device_type: _cuda_error(device_type),
}


def backend_error(backend: str, device_type: str) -> str | None:
    """Why a backend cannot run on tensors of a device, and the mend; or None."""
    if backend in _GPU_ERRORS:
        return _GPU_ERRORS[backend](device_type)
    if backend != "cpu":
        return None
    if device_type != "cpu":
        return f"needs CPU tensors, got queries on {device_type}"
    error = _native_error()
    if error is None:
        return None
    return (
        f"needs the native library, which did not load ({error}): reinstall grainrank with a C++ "
        "compiler"
    )


def auto_backend(device_type: str) -> str:
    """What `auto` means for a device, in silence."""
    names = ("cpu",) if device_type == "cpu" else tuple(_GPU_ERRORS)
    return next((name for name in names if backend_error(name, device_type) is None), "reference")


@functools.cache
def _pick(device_type: str) -> str:
    """What `auto` means for a device; says so once."""
    name = auto_backend(device_type)
    if name == "cpu":
        cpu = importlib.import_module("grainrank.cpu")
        logger.info("backend: auto picked cpu (%s) for cpu tensors", cpu.instruction_sets()[0])
    elif name != "reference":
        logger.info("backend: auto picked %s for %s tensors", name, device_type)
    elif device_type == "cpu":
        logger.warning(
            "backend: auto picked reference, which stores the N x M matrix: "
            "the native library did not load (%s)",
            _native_error(),
        )
    else:
        reasons = (f"{name} {error_of(device_type)}" for name, error_of in _GPU_ERRORS.items())
        logger.warning(
            "backend: auto picked reference, which stores the N x M matrix: %s", "; ".join(reasons)
        )
    return name


def resolve(backend: str, device: torch.device) -> str:
    return _pick(device.type) if backend == "auto" else backend


def _of_backend(batch: Batch, backend: str, classes: dict[str, tuple[str, str]]) -> Any:
    """An object of the class that stands for the backend, or None for the reference."""
    name = resolve(backend, batch.queries.device)
    if name == "reference":
        return None
    error = _native_error() if name == "cpu" else None
    if error is not None:
        raise RuntimeError(
            f'backend="cpu" needs the native library, which did not load ({error}); '
            f'reinstall grainrank with a C++ compiler, or use backend="reference"'
        )
    module, cls = classes[name]
    return getattr(importlib.import_module(module), cls)(batch)


def _passes(batch: Batch, backend: str) -> Passes | None:
    """The fused passes, or None for the reference."""
    passes: Passes | None = _of_backend(batch, backend, _PASSES)
    return passes


def rank_passes(batch: Batch, backend: str) -> BlockPasses | TilePasses | None:
    """The fused passes over ranks, or None for the reference."""
    passes: BlockPasses | TilePasses | None = _of_backend(batch, backend, _RANK_PASSES)
    return passes


def tables(
    batch: Batch, backend: str, full: bool, columns: bool, softplus: str, keep: bool = False
) -> tuple[TableSet, TableSet | None, Tensor | None]:
    """The tables of every row `[V, N, L + 1]`, and of every column `[V, M, L + 1]`.

    Without `full`, light ones. `softplus`: the negatives that the sums of the positives are taken
    against, or "". With `keep` comes what `gradients` is spared to compute again.
    """
    passes = _passes(batch, backend)
    if passes is None:
        return *dense_tables(batch, full, columns, softplus), None
    return sweep_tables(batch, passes, full, columns, softplus, keep)


def softplus(batch: Batch, backend: str, against: Tensor) -> tuple[Tensor, Tensor]:
    """The softplus sums against given thresholds `[V, N, L + 1]`, and their slopes."""
    passes = _passes(batch, backend)
    if passes is None:
        return dense_softplus(batch, against)
    return sweep_softplus(batch, passes, against)


def multiplies_twice(batch: Batch, backend: str) -> bool:
    """Whether the similarities are never stored, and so computed again for the gradients."""
    if resolve(backend, batch.queries.device) != "triton":
        return False
    return bool(importlib.import_module("grainrank.triton_launch").precision_of(batch))


def stores_similarities(batch: Batch, backend: str) -> bool:
    """Whether the similarities are stored row block by row block."""
    device = batch.queries.device
    return resolve(backend, device) != "reference" and not multiplies_twice(batch, backend)


def gradients(
    batch: Batch,
    backend: str,
    rows: TableSet,
    d_rows: TableGradientSet,
    columns: TableSet | None,
    d_columns: TableGradientSet | None,
    softplus: str,
    needs: Needs,
    kept: Tensor | None = None,
) -> Gradients:
    """The gradients for given gradients of the tables; `kept`: by `tables`."""
    passes = _passes(batch, backend)
    arguments = rows, d_rows, columns, d_columns, softplus, needs
    if passes is None:
        return dense_gradients(batch, *arguments)
    return sweep_gradients(batch, passes, *arguments, kept)


def multi_level_nce(
    batch: Batch,
    backend: str,
    level_weights: Tensor,
    positives: str,
    negatives: str,
    needs: Needs,
) -> tuple[Tensor, TableSet, Gradients]:
    """Losses `[N]` summed over the views, light tables, and the gradients of the losses' sum.

    `level_weights` `[V, L]`.
    """
    passes = _passes(batch, backend)
    arguments = level_weights, positives, negatives, needs
    if passes is None:
        return dense_multi_level_nce(batch, *arguments)
    return sweep_multi_level_nce(batch, passes, *arguments)


def sigmoid(
    batch: Batch, backend: str, bias: Tensor, level_weights: Tensor, needs: Needs
) -> SigmoidResult:
    """The sigmoid loss of each row, and the gradients of the sum. One prefix, no factors.

    `level_weights` `[L + 1]`.
    """
    passes = _passes(batch, backend)
    if passes is None:
        return dense_sigmoid(batch, bias, level_weights, needs)
    return sweep_sigmoid(batch, passes, bias, level_weights, needs)
