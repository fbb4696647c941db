"""Graded losses for transformers' `Trainer`: a loss function, a trainer and a collator.

Extra `[hf]`: transformers 5.0 or newer and accelerate.
"""

try:
    import transformers as _transformers  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "grainrank.integrations.transformers needs transformers: pip install 'grainrank[hf]'"
    ) from error

from .loss_func import GradedLossFunction
from .pairs import PairCollator
from .trainer import GradedTrainer

__all__ = ["GradedLossFunction", "GradedTrainer", "PairCollator"]
