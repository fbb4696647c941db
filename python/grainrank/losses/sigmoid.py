"""The sigmoid loss (SigLIP): every pair by itself, so that one pass gives loss and gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..autograd import sigmoid_loss_sum
from ..distributed.handshake import on_every_rank
from ..distributed.sums import over_ranks, replicated
from ..levels import LevelSource
from ..validation import check_scalar
from .module import LossModule
from .options import ScaledOptions, level_numbers, prepare

if TYPE_CHECKING:
    from typing_extensions import Unpack


@on_every_rank
def siglip_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    logit_bias: float | Tensor = 0.0,
    level_weights: Sequence[float] | Tensor | None = None,
    **options: Unpack[ScaledOptions],
) -> Tensor:
    """Sigmoid loss for language-image pre-training, with any number of positives in a row.

        loss = (1 / N) sum_ij w_y softplus(z_ij + bias) at level 0, w_y softplus(-z_ij - bias) above

    The loss and its gradients come from one pass: three products, and no table. All N rows count,
    with a positive or not.

    Args:
        queries: embeddings `[N, D]`, the images, say.
        candidates: embeddings `[M, D]`, the texts.
        levels: a level source; None: candidate i is the positive of query i.
        logit_bias: added to all logits; number or 0-d tensor, which may require a gradient. The
            paper starts at -10.
        level_weights: L + 1 numbers, from level 0 on; None: 1.
        options: `ScaledOptions`. The loss is the same in both directions but for the N that it is
            divided by; `"symmetric"` and `"joint"` are refused, and so is `reduction="none"`. With
            `matryoshka_dims` each prefix is a pass of its own.

    Returns:
        The loss, 0-d.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        Zhai et al., ICCV 2023, arXiv 2303.15343, algorithm 1.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> siglip_loss(q, c, logit_scale=10.0, logit_bias=-10.0).dim()
        0
    """
    if options.get("direction") in ("symmetric", "joint"):
        raise ValueError(
            f'direction must be "query_to_candidate" or "candidate_to_query" for siglip_loss, '
            f"whose pairs have no direction, got {options['direction']!r}"
        )
    if options.get("reduction") == "none":
        raise ValueError('reduction must be "mean" or "sum" for siglip_loss, got "none"')
    problem = prepare(queries, candidates, levels, **options)
    batch, size = problem.batch, problem.batch.levels.max_level + 1
    given = [1.0] * size if level_weights is None else level_weights
    weights = level_numbers("level_weights", given, "L + 1", size, problem).detach()
    bias = replicated(check_scalar("logit_bias", logit_bias, batch.scale), batch.shards)
    losses = []
    for p, (width, weight) in enumerate(zip(batch.prefixes, problem.dim_weights, strict=True)):
        memory = None if batch.memory is None else batch.memory[:, :width]
        prefix = batch._replace(
            queries=batch.queries[:, :width],
            candidates=batch.candidates[:, :width],
            memory=memory,
            levels=batch.levels.of_prefix(p),
            dims=(),
        )
        losses.append(weight * sigmoid_loss_sum(prefix, problem.backend, bias, weights))
    shards = batch.shards
    loss = over_ranks(torch.stack(losses).sum(), shards).to(batch.dtype)
    rows = batch.queries.shape[0] if shards is None else sum(shards.rows)
    return loss / rows if problem.reduction == "mean" else loss


class SigLIPLoss(LossModule):
    """`siglip_loss` as a module; the same options, given once.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> bias = torch.nn.Parameter(torch.tensor(-10.0))
        >>> SigLIPLoss(logit_scale=10.0, logit_bias=bias)(q, c).dim()
        0
    """

    function = staticmethod(siglip_loss)
