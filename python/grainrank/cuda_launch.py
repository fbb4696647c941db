"""What every call of the CUDA passes needs: addresses, dtypes, the stream."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _cuda  # type: ignore[attr-defined]

_DTYPES = {
    torch.float32: int(_cuda.Dtype.F32),
    torch.float64: int(_cuda.Dtype.F64),
    torch.float16: int(_cuda.Dtype.F16),
    torch.bfloat16: int(_cuda.Dtype.BF16),
}


def pointer(tensor: Tensor | None) -> int:
    """The address of a tensor that the caller keeps until the kernel has been launched."""
    return 0 if tensor is None else tensor.data_ptr()


def dtype_of(tensor: Tensor) -> int:
    return _DTYPES[tensor.dtype]


def stream_of(device: torch.device) -> int:
    """PyTorch's current stream, as the launchers take it."""
    return int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0
