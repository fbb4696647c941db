"""Level sources: the level of a pair (query i, candidate j) from O(N + M) data.

A level is `-1` (ignored), `0` (negative) or `1..L` (positive, higher is finer). The matrix of
levels is never built by the fused backends; `LevelSource.block` builds a row block of it for the
reference.
"""

from .bands import SimilarityBands
from .base import Excluded, LevelSource, Union, check_level_range, level_range_error
from .ceilings import Ceiled, FalseNegativeMargin
from .dense import DenseLevels
from .keys import Diagonal, GrainKeys
from .leaves import leaves_of
from .parts import as_source, from_parts
from .sparse import SparseLevels

__all__ = [
    "Ceiled",
    "DenseLevels",
    "Diagonal",
    "Excluded",
    "FalseNegativeMargin",
    "GrainKeys",
    "LevelSource",
    "SimilarityBands",
    "SparseLevels",
    "Union",
    "as_source",
    "check_level_range",
    "from_parts",
    "leaves_of",
    "level_range_error",
]
