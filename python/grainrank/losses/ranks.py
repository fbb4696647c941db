"""Losses on the ranks of the positives: smooth average precision, recall and nDCG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from .. import heads
from ..distributed.handshake import on_every_rank
from ..levels import LevelSource
from ..uncompiled import uncompiled
from ..validation import check_choice, check_number
from .evaluate_ranks import evaluate_ranks
from .module import LossModule
from .options import Problem, SharedOptions, level_numbers, prepare

if TYPE_CHECKING:
    from typing_extensions import Unpack

Gain = Literal["linear", "exp2"]


@uncompiled
@on_every_rank
def smooth_ap_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    temperature: float = 0.01,
    **options: Unpack[SharedOptions],
) -> Tensor:
    """One minus the smooth average precision; levels of 1 and more are pooled.

        loss_i = 1 - mean_p (1 + sum_{positives j != p} h_jp) / (1 + sum_{j != p} h_jp)
        h_jp = sigmoid((s_ij - s_ip) / temperature)

    In the public code, whose batch ranks itself, every query is a candidate and a positive of its
    own: `smooth_ap_loss(x, x, GrainKeys(y[:, None], y[:, None]))` equals it, on embeddings that it
    takes as they are; `exclude(ids, ids)` leaves that pair out. pytorch-metric-learning's
    SmoothAPLoss is the same where there are as many classes as items in each; in other batches it
    exchanges the two numbers, and takes other items for positives.

    Args:
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]`.
        levels: a level source; None: candidate i is the positive of query i.
        temperature: of the smooth step, in units of the similarity.
        options: `SharedOptions`; not `direction="joint"`.

    Returns:
        The loss, 0-d, or `[N]` for `reduction="none"`; a row without positives adds nothing.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        Brown et al., ECCV 2020, arXiv 2007.12163, eq. 6.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> smooth_ap_loss(q, c).dim()
        0
    """
    tau = check_number("temperature", temperature)
    problem = prepare(queries, candidates, levels, fixed_scale=1.0, **options)
    return evaluate_ranks(problem, heads.smooth_ap, tau, "sigmoid")


@uncompiled
@on_every_rank
def hierarchical_ap_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    temperature: float = 0.01,
    relevance: Sequence[float] | Tensor | None = None,
    **options: Unpack[SharedOptions],
) -> Tensor:
    """HAPPIER's loss: one minus the smooth hierarchical average precision.

        loss_i = 1 - (1 / sum_p rel_p) sum_p hrank_p / rank_p
        hrank_p = rel_p + sum_{j: s_j >= s_p} min(rel_j, rel_p)
        rank_p = 1 + sum_{j: y_j >= y_p} [s_j >= s_p] + sum_{j: y_j < y_p} h(s_j - s_p)

    with h the upper bound of the step of `grainrank.ranks.surrogates`: only candidates of lower
    levels push. The relevance of level l is `(l / L) / count_l` of the row, or `relevance[l]`.

    The same as HAPPIER's public `HAPLoss` with its defaults on a batch that ranks itself, in which
    the query is a positive of its own, of level L and counted there: `hierarchical_ap_loss(x, x,
    GrainKeys(labels, labels))`, without `exclude`; `match="count"` where labels are not nested. Its
    relevance is `(l / (L - 1)) / count_l`, a multiple of ours that cancels. Its exponent `alpha`
    needs numbers of `relevance`, which here are the same for all rows; its option `with_hrank`, a
    numerator with a gradient, has no form.

    Args:
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]`.
        levels: a level source; None: candidate i is the positive of query i.
        temperature: of the smooth step, in units of the similarity.
        relevance: L + 1 numbers, from level 0 on, whose relevance is 0; None: see above.
        options: `SharedOptions`; not `direction="joint"`.

    Returns:
        The loss, 0-d, or `[N]` for `reduction="none"`; a row without positives adds nothing.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        Ramzi et al., ECCV 2022, arXiv 2207.04873, eq. 3 to 7.

    Example:
        >>> x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
        >>> keys, ids = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 2]]), torch.arange(4)
        >>> hierarchical_ap_loss(x, x, GrainKeys(keys, keys).exclude(ids, ids)).dim()
        0
    """
    tau = check_number("temperature", temperature)
    problem = prepare(queries, candidates, levels, fixed_scale=1.0, **options)
    given = None if relevance is None else _of_levels("relevance", relevance, problem)
    return evaluate_ranks(
        problem, lambda ranks: heads.hierarchical_ap(ranks, given), tau, "upper_bound"
    )


@uncompiled
@on_every_rank
def smooth_recall_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8, 16),
    temperature: float = 0.01,
    rank_temperature: float = 1.0,
    **options: Unpack[SharedOptions],
) -> Tensor:
    """One minus the smooth recall at k, the mean over several k; levels are pooled.

        loss_i = 1 - mean_k mean_p sigmoid((k - rank_p) / rank_temperature)

    The public code leaves the query among its own candidates, as a negative: level 0 on the
    diagonal gives the same, and ranks that are one higher than with `exclude(ids, ids)`. It has a
    temperature of the ranks for each k: take the mean of one call for each. For a k below the
    number of positives P it bounds their number within k by k, and divides by k; ours is the
    recall, divided by P.

    Args:
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]`.
        levels: a level source; None: candidate i is the positive of query i.
        ks: cut-offs, 1 or more.
        temperature: of the smooth step, in units of the similarity.
        rank_temperature: of the cut-off, in ranks.
        options: `SharedOptions`; not `direction="joint"`.

    Returns:
        The loss, 0-d, or `[N]` for `reduction="none"`; a row without positives adds nothing.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        Patel et al., CVPR 2022, arXiv 2108.11179, eq. 6.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> smooth_recall_loss(q, c, ks=(1, 2)).dim()
        0
    """
    tau = check_number("temperature", temperature)
    cut = check_number("rank_temperature", rank_temperature)
    if len(ks) == 0 or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ks):
        raise ValueError(f"ks must be cut-offs, integers of 1 or more, got {list(ks)}")
    problem = prepare(queries, candidates, levels, fixed_scale=1.0, **options)
    return evaluate_ranks(
        problem, lambda ranks: heads.smooth_recall(ranks, ks, cut), tau, "sigmoid"
    )


@uncompiled
@on_every_rank
def smooth_ndcg_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    gain: Gain | Sequence[float] | Tensor = "linear",
    temperature: float = 0.01,
    **options: Unpack[SharedOptions],
) -> Tensor:
    """One minus the smooth nDCG over all candidates.

        loss_i = 1 - (1 / ideal) sum_p gain(y_p) / log2(1 + rank_p)

    With `gain="exp2"` and `temperature=1 / alpha` this is 1 plus allRank's approxNDCGLoss, which is
    the negative nDCG, has gains 2^l - 1 alone, and counts rows without a positive in its mean.

    Args:
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]`.
        levels: a level source; None: candidate i is the positive of query i.
        gain: of level l: `"linear"` (default): l; `"exp2"`: 2^l - 1; or L + 1 numbers, from level 0
            on, whose gain is 0.
        temperature: of the smooth step, in units of the similarity.
        options: `SharedOptions`; not `direction="joint"`.

    Returns:
        The loss, 0-d, or `[N]` for `reduction="none"`; a row without positives adds nothing.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        Qin et al., Information Retrieval 13 (2010), ApproxNDCG.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> smooth_ndcg_loss(q, c, gain="exp2").dim()
        0
    """
    tau = check_number("temperature", temperature)
    problem = prepare(queries, candidates, levels, fixed_scale=1.0, **options)
    gains = gains_of_levels(gain, problem)
    return evaluate_ranks(problem, lambda ranks: heads.smooth_ndcg(ranks, gains), tau, "sigmoid")


def gains_of_levels(gain: Gain | Sequence[float] | Tensor, problem: Problem) -> Tensor:
    """`[L + 1]`, without gradient."""
    if not isinstance(gain, str):
        return _of_levels("gain", gain, problem)
    check_choice("gain", gain, ("linear", "exp2"))
    size = problem.batch.levels.max_level + 1
    numbers = [float(k if gain == "linear" else 2**k - 1) for k in range(size)]
    return level_numbers("gain", numbers, "L + 1", size, problem)


def _of_levels(name: str, values: Sequence[float] | Tensor, problem: Problem) -> Tensor:
    """`[L + 1]`, without gradient."""
    size = problem.batch.levels.max_level + 1
    if not isinstance(values, Tensor) and len(values) > 0 and values[0] != 0:
        raise ValueError(f"{name} must be 0 for level 0, got {list(values)}; negatives have none")
    return level_numbers(name, values, "L + 1", size, problem).detach()


class SmoothAPLoss(LossModule):
    """`smooth_ap_loss` as a module; the same options, given once.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> SmoothAPLoss(temperature=0.05)(q, c).dim()
        0
    """

    function = staticmethod(smooth_ap_loss)
    shared = SharedOptions


class HierarchicalAPLoss(LossModule):
    """`hierarchical_ap_loss` as a module; the same options, given once.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> HierarchicalAPLoss()(q, c).dim()
        0
    """

    function = staticmethod(hierarchical_ap_loss)
    shared = SharedOptions


class SmoothRecallLoss(LossModule):
    """`smooth_recall_loss` as a module; the same options, given once.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> SmoothRecallLoss(ks=(1, 4))(q, c).dim()
        0
    """

    function = staticmethod(smooth_recall_loss)
    shared = SharedOptions


class SmoothNDCGLoss(LossModule):
    """`smooth_ndcg_loss` as a module; the same options, given once.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> SmoothNDCGLoss(gain="exp2")(q, c).dim()
        0
    """

    function = staticmethod(smooth_ndcg_loss)
    shared = SharedOptions
