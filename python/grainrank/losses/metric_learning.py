"""Losses of metric learning: Circle and MultiSimilarity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .. import heads
from ..distributed.handshake import on_every_rank
from ..levels import LevelSource
from ..validation import check_number
from .evaluate import evaluate
from .module import LossModule
from .options import SharedOptions, prepare

if TYPE_CHECKING:
    from typing_extensions import Unpack


@on_every_rank
def circle_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    gamma: float = 80.0,
    margin: float = 0.4,
    **options: Unpack[SharedOptions],
) -> Tensor:
    """Circle loss: every similarity is weighted by how far it is from its optimum.

        loss_i = softplus(LSE{gamma a_n (s_in - m): y_in = 0}
                          + LSE{-gamma a_p (s_ip - (1 - m)): y_ip >= 1})
        a_n = max(s_in + m, 0),  a_p = max(1 + m - s_ip, 0), constants to the gradient

    Args:
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]`.
        levels: a level source; None: candidate i is the positive of query i.
        gamma: the scale of the logits.
        margin: m, in units of the cosine.
        options: `SharedOptions`.

    Returns:
        The loss, 0-d, or `[N]` for `reduction="none"`. Rows without a positive or without a
        negative have loss 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        Sun et al., CVPR 2020, arXiv 2002.10857, eq. 6 to 8; the defaults are those of
        pytorch-metric-learning.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> circle_loss(q, c).dim()
        0
    """
    scale = check_number("gamma", gamma)
    m = check_number("margin", margin, low=-1.0)
    problem = prepare(queries, candidates, levels, fixed_scale=scale, **options)
    problem = problem._replace(batch=problem.batch._replace(circle=m))
    return evaluate(problem, lambda channels: heads.circle(channels[0]))


@on_every_rank
def multi_similarity_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    **options: Unpack[SharedOptions],
) -> Tensor:
    """Multi-similarity loss, without the miner.

        loss_i = log(1 + sum_{y >= 1} exp(-alpha (s - base))) / alpha
               + log(1 + sum_{y = 0} exp(beta (s - base))) / beta

    Args:
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]`.
        levels: a level source; None: candidate i is the positive of query i.
        alpha: the scale of the positives.
        beta: the scale of the negatives.
        base: the similarity that both are measured from.
        options: `SharedOptions`.

    Returns:
        The loss, 0-d, or `[N]` for `reduction="none"`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        Wang et al., CVPR 2019, arXiv 1904.06627, eq. 8; the defaults are those of
        pytorch-metric-learning.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> multi_similarity_loss(q, c).dim()
        0
    """
    a, b = check_number("alpha", alpha), check_number("beta", beta)
    zero = check_number("base", base, low=float("-inf"))
    problem = prepare(queries, candidates, levels, fixed_scale=1.0, **options)
    factors = problem.batch.scale.new_full((1, problem.batch.levels.max_level + 1), a)
    factors[0, 0] = b
    problem = problem._replace(batch=problem.batch._replace(factors=factors))
    return evaluate(
        problem,
        lambda channels: heads.multi_similarity(channels[0], channels[0], a, b, zero),
    )


class CircleLoss(LossModule):
    """`circle_loss` as a module; the same options, given once.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> CircleLoss(gamma=256.0, margin=0.25)(q, c).dim()
        0
    """

    function = staticmethod(circle_loss)
    shared = SharedOptions


class MultiSimilarityLoss(LossModule):
    """`multi_similarity_loss` as a module; the same options, given once.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> MultiSimilarityLoss(base=0.4)(q, c).dim()
        0
    """

    function = staticmethod(multi_similarity_loss)
    shared = SharedOptions
