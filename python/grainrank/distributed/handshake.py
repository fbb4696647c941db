"""All ranks compare sizes and options before anything else is sent.

One small collective in a step. Whatever is wrong on one rank is an error on every rank, and names
the rank.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..levels import LevelSource
from ..uncompiled import uncompiled
from . import collectives, dtensors
from .groups import resolve_group
from .levels import describe, describe_columns, matrices
from .shards import Shards, Transport

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_MATRICES = 24  # of the levels, and those of the sides of "joint"
_SOURCES = ("levels", "query_levels", "candidate_levels")
#: Of a rank's own, or compared in another way.
_NOT_COMPARED = (*dtensors.BATCH, *_SOURCES, "group", "backend", "product", "workspace_mb")

P = ParamSpec("P")
T = TypeVar("T")


class Handshake:
    """The comparison of one call of a loss."""

    def __init__(self, group: ProcessGroup, name: str, options: Mapping[str, Any]) -> None:
        self.group = group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        self._done = False
        self._description = {"the loss": name}
        for key, value in options.items():
            if key not in _NOT_COMPARED:
                self._description[key] = _described(value)

    def agree(
        self,
        queries: Tensor,
        candidates: Tensor,
        memory: Tensor | None,
        sources: Sequence[LevelSource | None],
        transport: Transport,
    ) -> tuple[Shards, list[bool]]:
        """The parts of all ranks, and of each matrix of the sources whether it has the columns of
        all ranks.

        Raises:
            ValueError: anything that differs between the ranks, or an error on another rank.
        """
        self._description |= {
            "torch.is_grad_enabled()": str(torch.is_grad_enabled()),
            "D, the features,": str(queries.shape[1]),
            "the dtype": str(queries.dtype),
            "the device": queries.device.type,
            "requires_grad of queries": str(queries.requires_grad),
            "requires_grad of candidates": str(candidates.requires_grad),
            "the dtype of memory": "None" if memory is None else str(memory.dtype),
        }
        for name, source in zip(_SOURCES, sources, strict=True):
            self._description[name] = describe(source)
            self._description[f"the data of {name}"] = describe_columns(source)
        columns = [m.num_candidates for source in sources for m in matrices(source)]
        q = 0 if memory is None else memory.shape[0]
        sizes = [queries.shape[0], candidates.shape[0], q]
        everyone = self._exchange(0, [*sizes, len(columns), *columns], queries.device)
        rows, of_candidates, of_memory = (tuple(r[i] for r in everyone) for i in range(3))
        for name, of_ranks in (("queries", rows), ("candidates", of_candidates)):
            if sum(of_ranks) == 0:
                raise ValueError(
                    f"{name} must have at least one row on some rank, got none on all "
                    f"{self.world} ranks; skip the step for an empty batch"
                )
        kept: dict[tuple[str, int], Any] = {}
        shards = Shards(
            self.group, self.rank, rows, of_candidates, of_memory, transport, "candidates", kept
        )
        return shards, self._whole(sources, [r[4 : 4 + r[3]] for r in everyone], shards)

    def _whole(
        self,
        sources: Sequence[LevelSource | None],
        given: Sequence[Sequence[int]],
        shards: Shards,
    ) -> list[bool]:
        """`given[k]`: columns of rank k's matrices."""
        whole: list[bool] = []
        for i, source in enumerate(sources):
            own = shards.rows if i == 1 else shards.described
            for _ in matrices(source):
                columns = [of_rank[len(whole)] for of_rank in given]
                everywhere = any(a != b for a, b in zip(columns, own, strict=True))
                ranks = range(self.world)
                odd = [k for k in ranks if columns[k] not in (own[k], sum(own))]
                if not odd and everywhere:
                    odd = [k for k in ranks if columns[k] != sum(own)]
                if odd:
                    k = odd[0]
                    raise ValueError(
                        f"a matrix of levels must have the columns of its rank, {own[k]} on rank "
                        f"{k}, or on every rank those of all ranks, {sum(own)}, got {columns[k]} "
                        f"on rank {k}, and on all ranks {columns}"
                    )
                whole.append(everywhere)
        return whole

    def fail(self, error: Exception) -> None:
        """Tells the others, if they do not know."""
        if not self._done:
            device = torch.device("cpu")
            if dist.get_backend(self.group) == "nccl":
                device = torch.device("cuda", torch.cuda.current_device())
            self._exchange(1, [], device, error)

    def _exchange(
        self, status: int, numbers: list[int], device: torch.device, error: Exception | None = None
    ) -> list[list[int]]:
        """The numbers of every rank."""
        self._done = True
        text = repr(sorted(self._description.items())).encode()
        digest = int.from_bytes(
            hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True
        )
        header = [status, digest, *numbers]
        header += [0] * (6 + _MATRICES - len(header))
        everyone = collectives.gather_equal(torch.tensor(header, device=device), self.group)
        found: list[list[int]] = everyone.tolist()
        if any(r[0] != 0 or r[1] != digest for r in found):
            self._explain(None if error is None else f"{type(error).__name__}: {error}")
        return [r[2:] for r in found]

    def _explain(self, error: str | None) -> None:
        """Raises on the ranks that have no error of their own."""
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, (error, self._description), group=self.group)
        if error is not None:
            return
        for rank, (text, _) in enumerate(everyone):
            if text is not None:
                raise ValueError(f"rank {rank} raised {text}; see there")
        for name in dict.fromkeys(key for _, of_rank in everyone for key in of_rank):
            values = [of_rank.get(name, "nothing") for _, of_rank in everyone]
            first = values[0]
            for rank, value in enumerate(values):
                if value != first:
                    level = name.endswith("levels")
                    hint = "; pass max_level, which is read from the data else" if level else ""
                    raise ValueError(
                        f"{name} must be the same on all ranks, got {first} on rank 0 and {value} "
                        f"on rank {rank}{hint}"
                    )


def _described(value: Any) -> str:
    """Numbers and names as they are; of tensors what the collectives depend on."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)} requires_grad={value.requires_grad}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_described, value))}]"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    return type(value).__name__


def on_every_rank(function: Callable[P, T]) -> Callable[P, T]:
    """A loss with the option `group`: compares the call with the other ranks', and tells them of an
    error.
    """

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> T:
        alone = options.get("group") is None or isinstance(options["group"], Handshake)
        if alone and not any(map(dtensors.is_dtensor, (*args, *options.values()))):
            return function(*args, **options)
        return _together(function, args, options)

    return call


@uncompiled
def _together(function: Callable[..., T], args: tuple[Any, ...], options: dict[str, Any]) -> T:
    given = resolve_group(options.get("group"))
    try:
        args, options = dtensors.to_local(function, args, options)
    except Exception as error:
        if given is not None:
            Handshake(given, function.__name__, {}).fail(error)
        raise
    group = resolve_group(options.pop("group", None))
    if group is None:
        return function(*args, **options)
    handshake = Handshake(group, function.__name__, options)
    try:
        return function(*args, group=handshake, **options)
    except Exception as error:
        handshake.fail(error)
        raise
