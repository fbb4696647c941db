"""Rows of embeddings, read some at a time from tensors, arrays, files and iterables of those."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_rows

from ..validation import FLOAT_DTYPES, INTEGER_DTYPES

_ARRAY_DTYPES = {
    np.dtype(np.float16): torch.float16,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
}
_KINDS = "a torch.Tensor, a numpy array or an iterable of those"


class Rows(NamedTuple):
    """Embeddings `[N, D]` that can be read again and in any order."""

    values: Tensor | np.ndarray[Any, Any]
    dtype: torch.dtype

    def __len__(self) -> int:
        return int(self.values.shape[0])

    @property
    def features(self) -> int:
        return int(self.values.shape[1])

    def read(self, start: int, stop: int, like: Tensor, unit: bool) -> Tensor:
        """`[stop - start, D]` of the dtype and device of `like`; `unit`: of length 1."""
        part = _converted(self.values[start:stop], like)
        return unit_rows(part, dim=1) if unit else part

    def take(self, index: Tensor, like: Tensor) -> Tensor:
        """The rows of int64 `[R]`, `[R, D]` of the dtype and device of `like`."""
        if isinstance(self.values, Tensor):
            return _converted(self.values[index.to(self.values.device)], like)
        return _converted(self.values[index.cpu().numpy()], like)


def _converted(part: Tensor | np.ndarray[Any, Any], like: Tensor) -> Tensor:
    tensor = part if isinstance(part, Tensor) else _as_tensor(part)
    return tensor.to(like.device).to(like.dtype)


def _as_tensor(part: np.ndarray[Any, Any]) -> Tensor:
    """Of the same memory where it lies in order, and has the byte order of this machine."""
    native = np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(native)  # that is only read


def as_rows(name: str, value: object, features: int | None = None) -> Rows:
    """A tensor or an array, checked; `features`: as many as there must be."""
    if not isinstance(value, (Tensor, np.ndarray)):
        raise TypeError(
            f"{name} must be {_KINDS}, got {type(value).__name__}; "
            f"convert it with torch.as_tensor({name})"
        )
    if isinstance(value, Tensor):
        dtype = value.dtype if value.dtype in FLOAT_DTYPES else None
    else:
        dtype = _ARRAY_DTYPES.get(value.dtype.newbyteorder("="))
    if dtype is None:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, got {value.dtype}; "
            f"convert it to float32"
        )
    shape = tuple(value.shape)
    if len(shape) != 2 or shape[1] == 0:
        raise ValueError(
            f"{name} must have shape [rows, D] with D >= 1, got {shape}; "
            f"flatten all leading dimensions into one"
        )
    if features is not None and shape[1] != features:
        raise ValueError(
            f"{name} must have D = {features} features like queries, got {shape[1]}; "
            f"project both into the same space"
        )
    return Rows(value.detach() if isinstance(value, Tensor) else value, dtype)


def joined_rows(name: str, value: object) -> Rows:
    """As `as_rows`; the chunks of an iterable are put together in memory."""
    if isinstance(value, (Tensor, np.ndarray)) or not isinstance(value, Iterable):
        return as_rows(name, value)
    parts = [as_rows(f"{name} chunk {i}", chunk) for i, chunk in enumerate(value)]
    if not parts:
        raise ValueError(f"{name} must have at least one chunk, got none; pass an empty [0, D]")
    dtype = parts[0].dtype
    for part in parts[1:]:
        dtype = torch.promote_types(dtype, part.dtype)
        as_rows(f"a chunk of {name}", part.values, parts[0].features)
    first = parts[0].values
    like = torch.empty(0, dtype=dtype, device=first.device if isinstance(first, Tensor) else "cpu")
    return Rows(torch.cat([part.read(0, len(part), like, False) for part in parts]), dtype)


def row_chunks(name: str, value: object, features: int) -> tuple[Rows | None, Iterator[Rows]]:
    """The first chunk, None where there is no chunk, and all chunks in order, the first included.

    A tensor or an array is one chunk.
    """
    if isinstance(value, (Tensor, np.ndarray)) or not isinstance(value, Iterable):
        rows = as_rows(name, value, features)
        return rows, iter([rows])
    chunks = (as_rows(f"{name} chunk {i}", chunk, features) for i, chunk in enumerate(value))
    first = next(chunks, None)
    return first, chunks if first is None else itertools.chain([first], chunks)


def as_ids(name: str, value: object) -> Tensor:
    """Integers `[rows]`, of a tensor or an array."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        value = torch.from_numpy(value.astype(np.int64))
    if not isinstance(value, Tensor) or value.dtype not in INTEGER_DTYPES:
        got = value.dtype if isinstance(value, (Tensor, np.ndarray)) else type(value).__name__
        raise TypeError(
            f"{name} must be an integer tensor or array, got {got}; "
            f"number the items first and pass them as torch.int64"
        )
    if value.dim() != 1:
        raise ValueError(f"{name} must have one dimension, got shape {tuple(value.shape)}")
    return value


def check_id_count(name: str, ids: Tensor, rows: int, of: str) -> None:
    if len(ids) != rows:
        raise ValueError(
            f"{name} must have one id for each of the {rows} rows of {of}, got {len(ids)}"
        )
