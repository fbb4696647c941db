"""How a retriever ranks, grain by grain: of its embeddings, or of a model on a data set.

`python -m grainrank evaluate` is the same as a command; docs/evaluation.md says what each number
means.
"""

from .embeddings import evaluate_embeddings
from .report import LevelScores, Report
from .tasks import DATA_SETS, Task, built_in_task

__all__ = [
    "DATA_SETS",
    "LevelScores",
    "Report",
    "Task",
    "built_in_task",
    "evaluate_embeddings",
]
