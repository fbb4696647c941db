"""Sources as the operators carry them: a kind, which is a short text, and tensors.

    kind := name(:option)* [ "(" kind ("," kind)* ")" ]

A source's tensors stand behind those of its members.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import Tensor

from .bands import SimilarityBands
from .base import Excluded, LevelSource, Union
from .ceilings import Ceiled
from .dense import DenseLevels
from .keys import Diagonal, GrainKeys
from .sparse import SparseLevels


def from_parts(kind: str, tensors: Sequence[Tensor]) -> LevelSource:
    """The source that `kind` and `tensors` were read from; no tensor is read."""
    tokens = iter(re.findall(r"[^(),]+|[(),]", kind))
    source, _ = _read(next(tokens), tokens, iter(tensors))
    return source


def _read(head: str, tokens: Iterator[str], data: Iterator[Tensor]) -> tuple[LevelSource, str]:
    """A source, and the token behind it."""
    name, *options = head.split(":")
    after = next(tokens, "")
    members: list[LevelSource] = []
    if after == "(":
        while after in ("(", ","):
            member, after = _read(next(tokens), tokens, data)
            members.append(member)
        after = next(tokens, "")
    return _build(name, options, members, data), after


def _build(
    name: str, options: list[str], members: list[LevelSource], data: Iterator[Tensor]
) -> LevelSource:
    if name == "diagonal":
        return Diagonal()
    if name == "keys":
        return GrainKeys(next(data), next(data), "count" if options == ["count"] else "prefix")
    if name == "dense":
        return DenseLevels(next(data), int(options[0]))
    if name == "sparse":
        return SparseLevels.from_tensors(int(options[0]), [next(data) for _ in range(6)])
    if name == "bands":
        tensors = [next(data) for _ in range(3)]
        return SimilarityBands.from_tensors(options[0], tensors, "own" in options)
    if name == "exclude":
        return Excluded(members[0], next(data), next(data))
    if name == "union":
        return Union(*members)
    rows = next(data)
    columns = next(data) if "columns" in options else None
    reference = (next(data), next(data)) if "reference" in options else None
    curated = (next(data), next(data)) if "curated" in options else None
    return Ceiled(members[0], rows, columns, reference, curated)


def as_source(levels: LevelSource | None) -> LevelSource:
    if levels is None:
        return Diagonal()
    if not isinstance(levels, LevelSource):
        raise TypeError(
            f"levels must be None or a level source, got {type(levels).__name__}; "
            f"wrap labels as GrainKeys(query_keys, candidate_keys), "
            f"or a matrix as DenseLevels(levels)"
        )
    return levels
