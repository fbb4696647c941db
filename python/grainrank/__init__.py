"""grainrank: in-batch multi-level ranking losses without the similarity matrix."""

from ._version import __version__
from .heads import multi_level_nce
from .levels import DenseLevels, Diagonal, GrainKeys, LevelSource
from .losses import MultiLevelRankingLoss, multi_level_ranking_loss
from .statistics import LevelStatistics, LossStatistics, level_statistics

__all__ = [
    "DenseLevels",
    "Diagonal",
    "GrainKeys",
    "LevelSource",
    "LevelStatistics",
    "LossStatistics",
    "MultiLevelRankingLoss",
    "__version__",
    "level_statistics",
    "multi_level_nce",
    "multi_level_ranking_loss",
]
