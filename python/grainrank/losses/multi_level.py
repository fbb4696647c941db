"""The in-batch multi-level ranking loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..distributed.handshake import on_every_rank
from ..heads import Negatives, Positives
from ..levels import LevelSource
from ..statistics import loss_statistics
from ..validation import check_choice
from .evaluate import evaluate_nce
from .module import LossModule
from .options import Problem, ScaledOptions, level_numbers, prepare

if TYPE_CHECKING:
    from typing_extensions import Unpack

COARSE_WEIGHT = 0.1  # keeps recall@1 and gains most of the graded nDCG on real data


def _level_weights(weights: Sequence[float] | Tensor | None, problem: Problem) -> Tensor:
    """`[L]`, dtype and device of the scale."""
    scale, max_level = problem.batch.scale, problem.batch.levels.max_level
    if weights is None:
        result = scale.new_full((max_level,), COARSE_WEIGHT)
        result[-1] = 1.0
        return result
    return level_numbers("level_weights", weights, "L", max_level, problem).detach()


@on_every_rank
def multi_level_ranking_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    positives: Positives = "exact",
    negatives: Negatives = "lower",
    level_weights: Sequence[float] | Tensor | None = None,
    level_temperatures: Sequence[float] | Tensor | None = None,
    return_stats: bool = False,
    **options: Unpack[ScaledOptions],
) -> Any:
    """In-batch multi-level ranking loss: rank candidates by the grains they share with the query.

    For row i with logits `z_ij` and levels `y_ij`, and level weights `w_k`:

        loss_i = sum over k = 1..L of w_k * (LSE(P_k and N_k) - LSE(P_k))
        P_k = {j: y_ij = k} ("exact") or {y_ij >= k} ("at_least")
        N_k = {j: 0 <= y_ij < k} ("lower") or {y_ij = 0} ("unrelated")

    with LSE the log-sum-exp of the logits. A level without positives in the row adds nothing; pairs
    of level -1 take no part. With L = 1 it is InfoNCE (SupCon-in where a row has several
    positives). The N x M matrix is never stored (`backend="reference"` excepted). In one direction,
    with `reduction` "mean" or "sum", the gradients are ready when the forward ends (three
    products); else the backward computes the similarities again (four).

    Args:
        queries: embeddings `[N, D]`, float16, bfloat16, float32 or float64.
        candidates: embeddings `[M, D]` of the same dtype and device.
        levels: a level source (`GrainKeys`, `SparseLevels`, ...); None: candidate i is the one
            positive of query i.
        positives: `"exact"` (default) or `"at_least"`.
        negatives: `"lower"` (default) or `"unrelated"`.
        level_weights: L numbers, `level_weights[k - 1]` for level k; None: 1 for the finest level,
            0.1 for the others.
        level_temperatures: L temperatures, `level_temperatures[k - 1]` for all logits of the term
            of level k, instead of `temperature`; a tensor may require a gradient.
        return_stats: also return `LossStatistics`, of the longest prefix and the queries' side.
        options: `ScaledOptions`: temperature or logit_scale, direction, reduction, normalize,
            matryoshka_dims, memory, backend, ...

    Returns:
        The loss, float32 (float64 for float64 inputs): 0-d, or `[N]` for `reduction="none"`. A
        batch without any positive has loss 0 and zero gradients. With `return_stats=True` the pair
        (loss, `LossStatistics`).

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        ELVA, arXiv 2606.20280 (rank negatives by what they share with the positive); "exact" with
        "lower" is RINCE-in, Hoffmann et al., AAAI 2022, eq. 4. Derivation: `grainrank.reference`.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> texts = torch.randn(4, 8, generator=generator, requires_grad=True)
        >>> images = torch.randn(4, 8, generator=generator)
        >>> grains = torch.tensor([[0, 0], [0, 1], [1, 2], [1, 2]])  # coarse to fine
        >>> levels = GrainKeys(grains, grains)
        >>> loss = multi_level_ranking_loss(texts, images, levels, temperature=0.1)
        >>> loss.backward()
        >>> texts.grad.shape
        torch.Size([4, 8])
    """
    check_choice("positives", positives, ("exact", "at_least"))
    check_choice("negatives", negatives, ("lower", "unrelated"))
    problem = prepare(queries, candidates, levels, level_temperatures, **options)
    weights = _level_weights(level_weights, problem)
    by_channel = weights[None] if level_temperatures is None else torch.diag(weights)
    loss, channels = evaluate_nce(problem, by_channel, positives, negatives)
    if not return_stats:
        return loss
    return loss, loss_statistics(channels, problem.batch, positives, negatives)


class MultiLevelRankingLoss(LossModule):
    """`multi_level_ranking_loss` as a module; the same options, given once.

    A `temperature`, `logit_scale` or `level_temperatures` that is an `nn.Parameter` is registered
    and learned. A model that owns its scale passes it with each call instead, e.g.
    `loss(q, c, levels, logit_scale=model.logit_scale.exp())`.

    Example:
        >>> loss = MultiLevelRankingLoss(temperature=0.07)
        >>> generator = torch.Generator().manual_seed(0)
        >>> q, c = torch.randn(2, 4, 8, generator=generator)
        >>> loss(q, c).dim()
        0
    """

    function = staticmethod(multi_level_ranking_loss)
