"""Learning to rank: pairwise losses with margins, and listwise ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from .. import heads
from ..distributed.handshake import on_every_rank
from ..distributed.sums import replicated
from ..levels import LevelSource
from ..validation import check_choice, check_number
from .evaluate import evaluate
from .module import LossModule
from .options import Problem, ScaledOptions, level_numbers, prepare, reject_reduction

if TYPE_CHECKING:
    from typing_extensions import Unpack


@on_every_rank
def pairwise_ranking_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    margin: float | Tensor = 0.0,
    scope: Literal["row", "batch"] = "row",
    **options: Unpack[ScaledOptions],
) -> Tensor:
    """Every pair of a higher level above every pair of a lower one, by a margin for the levels.

        loss_i = log(1 + sum over levels a > b of sum_{y_ij = b, y_ip = a} exp(z_ij - z_ip + m_ab))

    The margin of ELVA: `m_ab = margin * (a - b)`.

    Args:
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]`.
        levels: a level source; None: candidate i is the positive of query i.
        margin: of the logits, for each level between; or all of them, a tensor `[L + 1, L + 1]`
            with `margin[a, b]` for a > b. A margin of the cosine is multiplied by the logit scale.
        scope: `"row"` (default): pairs of one query are compared; `"batch"`: all pairs of the
            batch with one another, one number.
        options: `ScaledOptions`.

    Returns:
        The loss, 0-d, or `[N]` for `reduction="none"`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        CoSENT, Su 2022 (kexue.fm/archives/8847), with margins between levels as in ELVA, arXiv
        2606.20280.

    Example:
        >>> x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
        >>> keys = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 2]])
        >>> pairwise_ranking_loss(x, x, GrainKeys(keys, keys), temperature=0.1, margin=1.0).dim()
        0
    """
    check_choice("scope", scope, ("row", "batch"))
    if not isinstance(margin, Tensor):
        margin = check_number("margin", margin, low=-math.inf)
    if scope == "batch":
        reject_reduction('scope="batch"', options)
    problem = prepare(queries, candidates, levels, **options)
    if isinstance(margin, Tensor):
        margin = replicated(margin, problem.shards)
    return evaluate(problem, lambda channels: heads.pairwise_ranking(channels[0], margin, scope))


@on_every_rank
def cosent_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    **options: Unpack[ScaledOptions],
) -> Tensor:
    """CoSENT over all pairs of the batch: `pairwise_ranking_loss` with `scope="batch"`, margin 0.

        loss = log(1 + sum over all pairs with y_ij < y_kl of exp(z_ij - z_kl))

    Args:
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]`.
        levels: a level source; None: candidate i is the positive of query i.
        options: `ScaledOptions`; `reduction` is `"mean"`.

    Returns:
        The loss, 0-d.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        Su 2022 (kexue.fm/archives/8847); sentence-transformers' CoSENTLoss for pairs (i, i) alone.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> cosent_loss(q, c, temperature=0.05).dim()
        0
    """
    return pairwise_ranking_loss(queries, candidates, levels, scope="batch", **options)


def _gains(gains: Sequence[float] | Tensor | None, problem: Problem) -> Tensor | None:
    if gains is None:
        return None
    return level_numbers("gains", gains, "L", problem.batch.levels.max_level, problem)


@on_every_rank
def list_net_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    **options: Unpack[ScaledOptions],
) -> Tensor:
    """ListNet: cross-entropy between the softmax of the levels and the softmax of the logits.

        loss_i = LSE{z_ij} - sum_j t_ij z_ij,   t_ij = exp(y_ij) / sum_j exp(y_ij)

    over the pairs with `y_ij >= 0`. Level 0 has weight too.

    Args:
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]`.
        levels: a level source; None: candidate i is the positive of query i.
        options: `ScaledOptions`.

    Returns:
        The loss, 0-d, or `[N]` for `reduction="none"`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        Cao et al., ICML 2007, section 4 (top one probabilities).

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> list_net_loss(q, c, temperature=1.0).dim()
        0
    """
    problem = prepare(queries, candidates, levels, **options)
    return evaluate(problem, lambda channels: heads.list_net(channels[0]), full=False)


@on_every_rank
def softmax_ranking_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    gains: Sequence[float] | Tensor | None = None,
    **options: Unpack[ScaledOptions],
) -> Tensor:
    """Softmax cross-entropy weighted by the gains of the levels.

        loss_i = sum_j gain(y_ij) (LSE{z_ij: y_ij >= 0} - z_ij)

    Args:
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]`.
        levels: a level source; None: candidate i is the positive of query i.
        gains: L numbers, `gains[k - 1]` for level k; None: k. Level 0 has gain 0.
        options: `ScaledOptions`.

    Returns:
        The loss, 0-d, or `[N]` for `reduction="none"`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        rax.softmax_loss; Bruch et al., ICTIR 2019.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> softmax_ranking_loss(q, c, temperature=1.0, gains=[3.0]).dim()
        0
    """
    problem = prepare(queries, candidates, levels, **options)
    given = _gains(gains, problem)
    return evaluate(problem, lambda channels: heads.softmax_ranking(channels[0], given), full=False)


@on_every_rank
def unique_softmax_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    gains: Sequence[float] | Tensor | None = None,
    **options: Unpack[ScaledOptions],
) -> Tensor:
    """Softmax cross-entropy of each positive against the pairs of lower levels alone.

        loss_i = sum_j gain(y_ij) softplus(LSE{z_im: 0 <= y_im < y_ij} - z_ij)

    Args:
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]`.
        levels: a level source; None: candidate i is the positive of query i.
        gains: L numbers, `gains[k - 1]` for level k; None: `2^k - 1`.
        options: `ScaledOptions`; not `direction="joint"`.

    Returns:
        The loss, 0-d, or `[N]` for `reduction="none"`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        rax.unique_softmax_loss; Zhu and Klabjan, WWW 2020.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> unique_softmax_loss(q, c, temperature=0.1).dim()
        0
    """
    problem = prepare(queries, candidates, levels, **options)
    given = _gains(gains, problem)
    return evaluate(
        problem,
        lambda channels: heads.unique_softmax(channels[0], given),
        full=False,
        softplus="lower",
    )


class PairwiseRankingLoss(LossModule):
    """`pairwise_ranking_loss` as a module; the same options, given once.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> PairwiseRankingLoss(temperature=0.1, margin=0.5)(q, c).dim()
        0
    """

    function = staticmethod(pairwise_ranking_loss)


class CoSENTLoss(LossModule):
    """`cosent_loss` as a module; the same options, given once.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> CoSENTLoss(temperature=0.05)(q, c).dim()
        0
    """

    function = staticmethod(cosent_loss)


class ListNetLoss(LossModule):
    """`list_net_loss` as a module; the same options, given once.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> ListNetLoss(temperature=1.0)(q, c).dim()
        0
    """

    function = staticmethod(list_net_loss)


class SoftmaxRankingLoss(LossModule):
    """`softmax_ranking_loss` as a module; the same options, given once.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> SoftmaxRankingLoss(temperature=1.0)(q, c).dim()
        0
    """

    function = staticmethod(softmax_ranking_loss)


class UniqueSoftmaxLoss(LossModule):
    """`unique_softmax_loss` as a module; the same options, given once.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> UniqueSoftmaxLoss(temperature=0.1)(q, c).dim()
        0
    """

    function = staticmethod(unique_softmax_loss)
