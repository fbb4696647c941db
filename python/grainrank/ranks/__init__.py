"""Ranks of the positives: how many candidates of each level stand above each of them.

The second primitive beside the level tables: metrics and the losses of the AP and nDCG family
depend on the similarity matrix through these numbers alone. Streamed over row blocks; the memory is
that of the positives.
"""

from .positive_ranks import positive_ranks
from .table import PositiveRanks

__all__ = ["PositiveRanks", "positive_ranks"]
