"""The losses: a function and a module for each."""

from .contrastive import (
    CLIPLoss,
    GISTEmbedLoss,
    HardNegativeNCELoss,
    InfoNCELoss,
    SupConLoss,
    clip_loss,
    gist_embed_loss,
    hard_negative_nce_loss,
    info_nce_loss,
    sup_con_loss,
)
from .evaluate import head_loss
from .graded import CSLLoss, HMLCLoss, RINCELoss, csl_loss, hmlc_loss, rince_loss
from .lambda_rank import LambdaLoss, lambda_loss
from .metric_learning import (
    CircleLoss,
    MultiSimilarityLoss,
    circle_loss,
    multi_similarity_loss,
)
from .multi_level import MultiLevelRankingLoss, multi_level_ranking_loss
from .options import ScaledOptions, SharedOptions
from .ranking import (
    CoSENTLoss,
    ListNetLoss,
    PairwiseRankingLoss,
    SoftmaxRankingLoss,
    UniqueSoftmaxLoss,
    cosent_loss,
    list_net_loss,
    pairwise_ranking_loss,
    softmax_ranking_loss,
    unique_softmax_loss,
)
from .ranks import (
    HierarchicalAPLoss,
    SmoothAPLoss,
    SmoothNDCGLoss,
    SmoothRecallLoss,
    hierarchical_ap_loss,
    smooth_ap_loss,
    smooth_ndcg_loss,
    smooth_recall_loss,
)
from .sigmoid import SigLIPLoss, siglip_loss
from .tables import level_statistics

__all__ = [
    "CLIPLoss",
    "CSLLoss",
    "CircleLoss",
    "CoSENTLoss",
    "GISTEmbedLoss",
    "HMLCLoss",
    "HardNegativeNCELoss",
    "HierarchicalAPLoss",
    "InfoNCELoss",
    "LambdaLoss",
    "ListNetLoss",
    "MultiLevelRankingLoss",
    "MultiSimilarityLoss",
    "PairwiseRankingLoss",
    "RINCELoss",
    "ScaledOptions",
    "SharedOptions",
    "SigLIPLoss",
    "SmoothAPLoss",
    "SmoothNDCGLoss",
    "SmoothRecallLoss",
    "SoftmaxRankingLoss",
    "SupConLoss",
    "UniqueSoftmaxLoss",
    "circle_loss",
    "clip_loss",
    "cosent_loss",
    "csl_loss",
    "gist_embed_loss",
    "hard_negative_nce_loss",
    "head_loss",
    "hierarchical_ap_loss",
    "hmlc_loss",
    "info_nce_loss",
    "lambda_loss",
    "level_statistics",
    "list_net_loss",
    "multi_level_ranking_loss",
    "multi_similarity_loss",
    "pairwise_ranking_loss",
    "rince_loss",
    "siglip_loss",
    "smooth_ap_loss",
    "smooth_ndcg_loss",
    "smooth_recall_loss",
    "softmax_ranking_loss",
    "sup_con_loss",
    "unique_softmax_loss",
]
