"""Graded losses of the hierarchy literature: RINCE, HMLC, CSL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from .. import heads
from ..distributed.handshake import on_every_rank
from ..levels import LevelSource
from ..statistics import LevelStatistics
from ..validation import check_choice
from .evaluate import evaluate, evaluate_nce
from .module import LossModule
from .options import ScaledOptions, level_numbers, prepare, reject_reduction

if TYPE_CHECKING:
    from typing_extensions import Unpack


@on_every_rank
def rince_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    form: Literal["in", "out", "out-in"] = "in",
    level_temperatures: Sequence[float] | Tensor | None = None,
    **options: Unpack[ScaledOptions],
) -> Tensor:
    """Ranked InfoNCE: for each level, its pairs against all lower ones; the mean over the levels.

        in:  loss_ik = -log( sum_{p in P_k} exp(z_ip) / sum_{p in P_k or lower} exp(z_ip) )
        out: loss_ik = mean_{p in P_k} softplus(LSE{z_ij: 0 <= y_ij < k} - z_ip)
        out-in: "out" for the finest level, "in" for the others

    Level L is the paper's rank 0.

    Args:
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]`.
        levels: a level source; None: candidate i is the positive of query i.
        form: `"in"` (default), `"out"` or `"out-in"`.
        level_temperatures: L temperatures, `level_temperatures[k - 1]` for all logits of the term
            of level k, instead of `temperature`: the finest the lowest. A tensor may require a
            gradient.
        options: `ScaledOptions`.

    Returns:
        The loss, 0-d, or `[N]` for `reduction="none"`. A level without positives in a row adds
        nothing. The public code drops pairs whose probability is below 1e-7, the hardest among
        them; here they count.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        Hoffmann et al., AAAI 2022, arXiv 2201.11736, eq. 4 to 6.

    Example:
        >>> x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
        >>> keys, ids = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 2]]), torch.arange(4)
        >>> levels = GrainKeys(keys, keys).exclude(ids, ids)
        >>> rince_loss(x, x, levels, level_temperatures=[0.2, 0.1]).dim()
        0
    """
    check_choice("form", form, ("in", "out", "out-in"))
    problem = prepare(queries, candidates, levels, level_temperatures, **options)
    size, one = problem.batch.levels.max_level, problem.batch.scale
    weights = one.new_full((size,), 1 / size)
    if form == "in":
        by_channel = weights[None] if level_temperatures is None else torch.diag(weights)
        return evaluate_nce(problem, by_channel, "exact", "lower")[0]
    outer, inner = weights, torch.zeros_like(weights)
    if form == "out-in":
        outer, inner = weights.clone(), weights.clone()
        outer[:-1], inner[-1] = 0.0, 0.0

    def head(channels: Sequence[LevelStatistics]) -> Tensor:
        per_level = channels if len(channels) > 1 else list(channels) * size
        return heads.rince_out(per_level, outer) + heads.rince(per_level, inner)

    return evaluate(problem, head, full=False, softplus="lower")


@on_every_rank
def hmlc_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    form: Literal["hmc", "hce", "hmce"] = "hmce",
    **options: Unpack[ScaledOptions],
) -> Tensor:
    """Hierarchical multi-label contrastive loss: SupCon at every layer of the hierarchy.

    With L_k the SupCon loss whose positives are `y >= k`, a mean over the rows that have one:
    "hmc" weighs it by layer, "hce" lets no coarser layer cost less than a finer one, "hmce" does
    both (`heads.hmlc` has the formulas).

    Args:
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]`.
        levels: a level source; None: candidate i is the positive of query i.
        form: `"hmce"` (default), `"hmc"` or `"hce"`.
        options: `ScaledOptions`; the loss is one number for the batch, `reduction` is `"mean"`.

    Returns:
        The loss, 0-d. Rows without positives at a layer are left out of its mean; the public code
        gives NaN for them, and keeps one image per category in the finer layers, which a level
        source can say with level -1.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        Zhang et al., CVPR 2022, arXiv 2204.13207, eq. 3 to 6.

    Example:
        >>> x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
        >>> keys, ids = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 2]]), torch.arange(4)
        >>> levels = GrainKeys(keys, keys).exclude(ids, ids)
        >>> hmlc_loss(x, x, levels, temperature=0.1).dim()
        0
    """
    check_choice("form", form, ("hmc", "hce", "hmce"))
    reject_reduction("hmlc_loss", options)
    problem = prepare(queries, candidates, levels, **options)
    return evaluate(problem, lambda channels: heads.hmlc(channels[0], form), full=False)


@on_every_rank
def csl_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    margins: Sequence[float] | Tensor | None = None,
    **options: Unpack[ScaledOptions],
) -> Tensor:
    """Cross-scale learning: everything below a level against the lowest of the finest positives.

        loss_i = sum_k softplus(LSE{z_ij: 0 <= y_ij < k} + LSE{-z_ip: y_ip = L} + m_k)

    Args:
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]`.
        levels: a level source; None: candidate i is the positive of query i.
        margins: L margins of the logits, `margins[k - 1]` for level k; None: 0. A margin of the
            cosine is multiplied by the logit scale.
        options: `ScaledOptions`.

    Returns:
        The loss, 0-d, or `[N]` for `reduction="none"`. Rows without a pair of the finest level have
        loss 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        Sun et al., Dynamic Metric Learning, CVPR 2021, arXiv 2103.11781, eq. 7.

    Example:
        >>> x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
        >>> keys = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 2]])
        >>> csl_loss(x, x, GrainKeys(keys, keys), temperature=0.1, margins=[2.0, 1.0]).dim()
        0
    """
    problem = prepare(queries, candidates, levels, **options)
    size = problem.batch.levels.max_level
    given = [0.0] * size if margins is None else margins
    shifts = level_numbers("margins", given, "L", size, problem)
    return evaluate(problem, lambda channels: heads.csl(channels[0], shifts))


class RINCELoss(LossModule):
    """`rince_loss` as a module; the same options, given once.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> RINCELoss(temperature=0.1, form="out")(q, c).dim()
        0
    """

    function = staticmethod(rince_loss)


class HMLCLoss(LossModule):
    """`hmlc_loss` as a module; the same options, given once.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> HMLCLoss(temperature=0.1)(q, c).dim()
        0
    """

    function = staticmethod(hmlc_loss)


class CSLLoss(LossModule):
    """`csl_loss` as a module; the same options, given once.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> CSLLoss(temperature=0.1)(q, c).dim()
        0
    """

    function = staticmethod(csl_loss)
