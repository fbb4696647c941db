"""Loss heads: ordinary differentiable PyTorch on the level tables `[N, L + 1]`.

A head takes `LevelStatistics` and gives the loss of each row `[N]` (a few give one number for the
batch). A row in which the loss is not defined, above all one without positives, has loss 0 and no
gradient; no head gives NaN for finite logits.
"""

from .contrastive import hard_negative_nce, info_nce, sup_con
from .graded import csl, hmlc, rince, rince_out
from .metric_learning import circle, multi_similarity
from .nce import (
    Negatives,
    Positives,
    level_sums,
    multi_level_nce,
    multi_level_nce_gradient,
)
from .ranking import list_net, pairwise_ranking, softmax_ranking, unique_softmax
from .ranks import (
    hierarchical_ap,
    ideal_dcg,
    relevance_of_levels,
    smooth_ap,
    smooth_ndcg,
    smooth_recall,
)
from .tables import Tables, merge

__all__ = [
    "Negatives",
    "Positives",
    "Tables",
    "circle",
    "csl",
    "hard_negative_nce",
    "hierarchical_ap",
    "hmlc",
    "ideal_dcg",
    "info_nce",
    "level_sums",
    "list_net",
    "merge",
    "multi_level_nce",
    "multi_level_nce_gradient",
    "multi_similarity",
    "pairwise_ranking",
    "relevance_of_levels",
    "rince",
    "rince_out",
    "smooth_ap",
    "smooth_ndcg",
    "smooth_recall",
    "softmax_ranking",
    "sup_con",
    "unique_softmax",
]
