"""A composition of sources as the fused passes read it: a list of leaves, and of exclusions."""

from __future__ import annotations

from torch import Tensor

from .base import Excluded, LevelSource, Union
from .ceilings import Ceiled

Ids = tuple[Tensor, Tensor]


def leaves_of(source: LevelSource) -> tuple[list[LevelSource], list[Ids]]:
    """The sources that a level is the highest of, and ids `[N]`, `[M]` whose equal pairs are
    ignored; without the ceilings.

    `-1` wins over every level, so that `exclude` anywhere in a composition is `exclude` of all of
    it.
    """
    return _walk(source.base if isinstance(source, Ceiled) else source)


def _walk(source: LevelSource) -> tuple[list[LevelSource], list[Ids]]:
    if isinstance(source, Excluded):
        leaves, exclusions = _walk(source.base)
        return leaves, [*exclusions, source.ids]
    if not isinstance(source, Union):
        return [source], []
    members = [_walk(member) for member in source.members]
    return [leaf for m, _ in members for leaf in m], [ids for _, m in members for ids in m]
