"""The fused passes on the CPU: the C++ of csrc/ behind the contract of `sweep.Passes`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _native  # type: ignore[attr-defined]
from .levels import LevelSource, check_level_range, level_range_error
from .sweep import TableGradientSet, TableSet

_INT32 = torch.iinfo(torch.int32)
_LARGE = 4 * 2**20  # bytes from which huge pages pay
_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


def instruction_sets() -> list[str]:
    """The instruction sets that this build holds and this machine runs, the best first."""
    return list(_native.instruction_sets())


def _narrow(queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Both as int32 with equality kept; negative stays negative.

    Keys beyond 32 bits (hashes, ids) are numbered anew.
    """
    both = torch.cat([queries.reshape(-1), candidates.reshape(-1)])
    if both.dtype == torch.int64:
        low, high = both.aminmax()
        if int(low) < _INT32.min or int(high) > _INT32.max:
            known = both >= 0
            _, number = torch.unique(both, return_inverse=True)
            # Ids are compared as they are, so negative ones stay distinct: -1, -2, ...
            both = torch.where(known, number, -1 - number)
    both = both.to(torch.int32)
    return both[: queries.numel()].view(queries.shape), both[queries.numel() :].view(
        candidates.shape
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class CpuPasses:
    """The passes for one batch; holds the level data in the layout that the C++ reads."""

    def __init__(
        self, levels: LevelSource, scale: Tensor, instruction_set: str | None = None
    ) -> None:
        self._set = instruction_set or instruction_sets()[0]
        self._scale = float(scale)
        self._dtype = scale.dtype
        self._suffix = _SUFFIX[scale.dtype]
        self._max_level = levels.max_level
        self._data: dict[str, Tensor] = {}
        kind, _, modifier = levels.kind.partition("+")
        tensors = list(levels.tensors)
        if modifier:
            candidate_ids, query_ids = tensors.pop(), tensors.pop()
            self._data["query_ids"], self._data["candidate_ids"] = _narrow(query_ids, candidate_ids)
        if kind.startswith("keys:"):
            query_keys, candidate_keys = _narrow(*tensors)
            self._data["query_keys"] = query_keys.contiguous()  # [N, K]
            self._data["candidate_keys"] = candidate_keys.t().contiguous()  # [K, M]
        elif kind == "dense":
            self._data["dense"] = _dense(tensors[0], self._max_level)
        kinds = _native.LevelKind
        self._levels = _native.LevelArgs(
            kind={
                "diagonal": kinds.DIAGONAL,
                "keys:prefix": kinds.KEYS_PREFIX,
                "keys:count": kinds.KEYS_COUNT,
                "dense": kinds.DENSE,
            }[kind],
            max_level=self._max_level,
            num_keys=self._data["query_keys"].shape[1] if "query_keys" in self._data else 0,
            **{
                name: _address(self._data.get(name))
                for name in ("query_keys", "candidate_keys", "dense", "query_ids", "candidate_ids")
            },
        )

    def empty(self, *shape: int) -> Tensor:
        tensor = torch.empty(*shape, dtype=self._dtype)
        size = tensor.numel() * tensor.element_size()
        if size >= _LARGE:
            _native.advise_huge_pages(tensor.data_ptr(), size)
        return tensor

    def tables(self, similarities: Tensor, start: int, out: TableSet) -> None:
        arguments = getattr(_native, f"Tables_{self._suffix}")(
            **{name: _address(tensor) for name, tensor in out._asdict().items()}
        )
        block = self._block(similarities, start)
        self._check(_native.tables(self._set, block, self._levels, arguments))

    def gradients_(
        self, similarities: Tensor, start: int, tables: TableSet, d_tables: TableGradientSet
    ) -> None:
        held = {f"d_{name}": t for name, t in d_tables._asdict().items() if t is not None}
        held = {name: t.contiguous() for name, t in held.items()}
        arguments = getattr(_native, f"TableGradients_{self._suffix}")(
            lse=_address(tables.lse),
            neg_lse=_address(tables.neg_lse),
            highest_at=_address(tables.highest_at),
            lowest_at=_address(tables.lowest_at),
            **{
                name: _address(held.get(name))
                for name in ("d_lse", "d_neg_lse", "d_total", "d_highest", "d_lowest")
            },
        )
        block = self._block(similarities, start)
        self._check(_native.gradients(self._set, block, self._levels, arguments))

    def _block(self, similarities: Tensor, start: int) -> Any:
        rows, columns = similarities.shape
        return getattr(_native, f"Block_{self._suffix}")(
            similarities=similarities.data_ptr(),
            rows=rows,
            columns=columns,
            row_stride=similarities.stride(0),
            first_row=start,
            scale=self._scale,
            num_threads=torch.get_num_threads(),
        )

    def _check(self, status: int) -> None:
        if status != 0:
            raise level_range_error(self._max_level)


def _dense(levels: Tensor, max_level: int) -> Tensor:
    """int8 `[N, M]`, contiguous. Another dtype is checked first: 256 would wrap to 0."""
    if levels.dtype != torch.int8:
        check_level_range(levels, max_level)
    return levels.to(torch.int8).contiguous()
