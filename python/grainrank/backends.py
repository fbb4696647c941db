"""Which implementation runs a step, and the contract that all of them share."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from . import reference
from .sweep import (
    Batch,
    Needs,
    Passes,
    TableGradientSet,
    TableSet,
    sweep_gradients,
    sweep_multi_level_nce,
    sweep_tables,
)

Backend = Literal["auto", "reference", "cpu", "cuda", "triton"]
BACKENDS = ("auto", "reference", "cpu", "cuda", "triton")

logger = logging.getLogger("grainrank")

Gradients = tuple[Tensor, Tensor, Tensor]
NCEResult = tuple[Tensor, TableSet, Gradients]


def check_backend(backend: str, device: torch.device) -> None:
    """Raises where an explicitly named backend cannot run on `device`; it never falls back."""
    if backend not in BACKENDS:
        allowed = ", ".join(repr(name) for name in BACKENDS)
        raise ValueError(f"backend must be one of {allowed}, got {backend!r}")
    if backend in ("cuda", "triton"):
        raise ValueError(
            f'backend="{backend}" is not part of this release; '
            f'use backend="reference" on {device.type} tensors, or "auto"'
        )
    if backend == "cpu" and device.type != "cpu":
        raise ValueError(
            f'backend="cpu" needs CPU tensors, got queries on {device}; use backend="auto"'
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
def _pick(device_type: str) -> str:
    """What `auto` means for a device; says so once."""
    if device_type != "cpu":
        logger.warning(
            "backend: auto picked reference, which stores the N x M matrix: "
            "no fused kernel for %s tensors in this release",
            device_type,
        )
        return "reference"
    error = _native_error()
    if error is not None:
        logger.warning(
            "backend: auto picked reference, which stores the N x M matrix: "
            "the native library did not load (%s)",
            error,
        )
        return "reference"
    cpu = importlib.import_module("grainrank.cpu")
    logger.info("backend: auto picked cpu (%s) for cpu tensors", cpu.instruction_sets()[0])
    return "cpu"


def resolve(backend: str, device: torch.device) -> str:
    return _pick(device.type) if backend == "auto" else backend


def _passes(batch: Batch) -> Passes:
    error = _native_error()
    if error is not None:
        raise RuntimeError(
            f'backend="cpu" needs the native library, which did not load ({error}); '
            f'reinstall grainrank with a C++ compiler, or use backend="reference"'
        )
    make: Callable[..., Passes] = importlib.import_module("grainrank.cpu").CpuPasses
    return make(batch.levels, batch.scale)


def _reference_tables(batch: Batch) -> tuple[reference.Tables, Tensor]:
    n, m = batch.queries.shape[0], batch.candidates.shape[0]
    z, *_ = reference.logits(batch.queries, batch.candidates, batch.scale, batch.normalize)
    level = batch.levels.block(0, n, m, batch.queries.device)
    return reference.level_tables(z, level, batch.levels.max_level), level


def _table_set(values: reference.Tables, full: bool) -> TableSet:
    if full:
        return TableSet(*values)
    return TableSet(values.lse, None, None, values.count, None, None, None, None)


def tables(batch: Batch, backend: str, full: bool) -> TableSet:
    """The tables of every row."""
    if resolve(backend, batch.queries.device) == "cpu":
        return sweep_tables(batch, _passes(batch), full)
    return _table_set(_reference_tables(batch)[0], full)


def gradients(
    batch: Batch, backend: str, saved: TableSet, d_tables: TableGradientSet, needs: Needs
) -> Gradients:
    """d_queries `[N, D]`, d_candidates `[M, D]`, d_scale, accumulation dtype; not needed: empty."""
    if resolve(backend, batch.queries.device) == "cpu":
        return sweep_gradients(batch, _passes(batch), saved, d_tables, needs)
    n, m = batch.queries.shape[0], batch.candidates.shape[0]
    level = batch.levels.block(0, n, m, batch.queries.device)
    return _reference_gradients(batch, level, saved, d_tables, needs)


def _reference_gradients(
    batch: Batch, level: Tensor, saved: TableSet, d_tables: TableGradientSet, needs: Needs
) -> Gradients:
    d_queries, d_candidates, d_scale = reference.gradients(
        batch.queries,
        batch.candidates,
        batch.scale,
        level,
        reference.Tables(*saved),  # type: ignore[arg-type]
        reference.TableGradients(*d_tables),
        batch.normalize,
    )
    return (
        d_queries if needs.queries else d_queries.new_empty(0),
        d_candidates if needs.candidates else d_candidates.new_empty(0),
        d_scale,
    )


def multi_level_nce(
    batch: Batch,
    backend: str,
    level_weights: Tensor,
    positives: str,
    negatives: str,
    full: bool,
    needs: Needs,
) -> NCEResult:
    """Losses `[N]`, tables, and the gradients of the sum of the losses."""
    if resolve(backend, batch.queries.device) == "cpu":
        return sweep_multi_level_nce(
            batch, _passes(batch), level_weights, positives, negatives, full, needs
        )
    values, level = _reference_tables(batch)
    losses, d_lse = reference.multi_level_nce(values, level_weights, positives, negatives)
    saved = _table_set(values, full)
    if needs.any():
        return (
            losses,
            saved,
            _reference_gradients(batch, level, saved, TableGradientSet(d_lse), needs),
        )
    return losses, saved, (losses.new_empty(0), losses.new_empty(0), losses.new_zeros(()))
