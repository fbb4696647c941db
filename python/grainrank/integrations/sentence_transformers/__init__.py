"""Graded losses, a batch sampler and an evaluator for sentence-transformers.

Extra `[st]`: sentence-transformers 6.0 or newer.
"""

try:
    import sentence_transformers as _sentence_transformers
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "grainrank.integrations.sentence_transformers needs sentence-transformers: "
        "pip install 'grainrank[st]'"
    ) from error
if not hasattr(_sentence_transformers, "base"):
    raise ImportError(
        "grainrank.integrations.sentence_transformers needs sentence-transformers 6.0 or newer, "
        f"got {_sentence_transformers.__version__}: pip install -U 'grainrank[st]'"
    )

from .evaluator import GradedRetrievalEvaluator
from .losses import (
    CachedGradedLoss,
    CachedMultiLevelRankingLoss,
    GradedLoss,
    MultiLevelRankingLoss,
)
from .sampler import GradedBatchSampler

__all__ = [
    "CachedGradedLoss",
    "CachedMultiLevelRankingLoss",
    "GradedBatchSampler",
    "GradedLoss",
    "GradedRetrievalEvaluator",
    "MultiLevelRankingLoss",
]
