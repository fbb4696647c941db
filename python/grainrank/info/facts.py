"""Versions, machine and backends, as plain dictionaries."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch

from ..backends import BACKENDS, auto_backend, backend_error
from ..machine import gpus, instruction_sets, machine_header

# Which extra of grainrank brings a library; "": none does.
EXTRAS = {
    "triton": "triton",
    "sentence-transformers": "st",
    "transformers": "hf",
    "pillow": "eval",
    "matplotlib": "plot",
    "rich": "cli",
    "simple-icd-10-cm": "text",
    "open_clip_torch": "",
    "accelerate": "hf",
}


def facts() -> dict[str, Any]:
    """What `info` says, all but the self-check."""
    found_gpus = gpus()
    devices = ["cpu", "cuda"] if found_gpus else ["cpu"]
    optional = {name: _version(name) for name in EXTRAS}
    return {
        "machine": machine_header(),
        "numpy": _version("numpy"),
        "optional": optional,
        "missing": {name: mend(name) for name, version in optional.items() if version is None},
        "instruction_sets": instruction_sets(),
        "gpus": found_gpus,
        "gpu_error": None if found_gpus else _gpu_error(),
        "distributed": torch.distributed.is_available(),
        "backends": {name: backend(name, devices[-1]) for name in BACKENDS if name != "auto"},
        "auto": {device: auto_backend(device) for device in devices},
    }


def mend(name: str) -> str:
    """How an optional library is installed."""
    extra = EXTRAS[name]
    return f"pip install 'grainrank[{extra}]'" if extra else f"pip install {name}"


def backend(name: str, best: str) -> dict[str, Any]:
    """Whether it is available, and why not; `best`: `"cuda"` where there is a GPU, else `"cpu"`."""
    error = backend_error(name, best if name in ("cuda", "triton") else "cpu")
    if error is not None and error.startswith("needs tensors on") and best == "cpu":
        error = f"needs a GPU; {_gpu_error()}"
    return {"available": error is None, "reason": error}


def _gpu_error() -> str:
    """Why PyTorch sees no GPU."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built for the CPU alone: see pytorch.org"
    made_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    return f"PyTorch, built for {made_for}, sees none: check the driver and CUDA_VISIBLE_DEVICES"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
