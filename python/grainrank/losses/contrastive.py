"""Losses with one level of positives: InfoNCE and its kin. Levels of 1 and more are pooled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from .. import heads
from ..distributed.handshake import on_every_rank
from ..levels import LevelSource, as_source
from ..statistics import LevelStatistics
from ..validation import check_choice, check_number
from .evaluate import evaluate, evaluate_nce
from .module import LossModule
from .options import ScaledOptions, prepare

if TYPE_CHECKING:
    from typing_extensions import Unpack


@on_every_rank
def info_nce_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    **options: Unpack[ScaledOptions],
) -> Tensor:
    """InfoNCE, also known as MultipleNegativesRankingLoss and NT-Xent.

        loss_i = LSE{z_ij: y_ij >= 0} - LSE{z_ij: y_ij >= 1}

    With one positive in a row this is the cross-entropy of it. Where a row has several, their
    probabilities are added (SupCon-in); `sup_con_loss` takes the mean of the logarithms instead.

    Args:
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]`.
        levels: a level source; None: candidate i is the positive of query i.
        options: `ScaledOptions`.

    Returns:
        The loss, 0-d, or `[N]` for `reduction="none"`; a row without positives adds nothing.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        van den Oord et al. 2018, arXiv 1807.03748, eq. 4; `direction="joint"`: GTE, Li et al.
        2023, arXiv 2308.03281, eq. 2.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> loss = info_nce_loss(q, c, temperature=0.1, normalize=False)
        >>> torch.allclose(loss, torch.nn.functional.cross_entropy(q @ c.T / 0.1, torch.arange(4)))
        True
    """
    problem = prepare(queries, candidates, levels, **options)
    weights = problem.batch.scale.new_zeros(1, problem.batch.levels.max_level)
    weights[0, 0] = 1.0
    return evaluate_nce(problem, weights, "at_least", "unrelated")[0]


@on_every_rank
def clip_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    **options: Unpack[ScaledOptions],
) -> Tensor:
    """CLIP: `info_nce_loss` in both directions, `(loss(q, c) + loss(c, q)) / 2`.

    Args:
        queries: embeddings `[N, D]`, the images, say.
        candidates: embeddings `[M, D]`, the texts.
        levels: a level source; None: candidate i is the positive of query i.
        options: `ScaledOptions`; `direction` is `"symmetric"` unless given.

    Returns:
        The loss, 0-d.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        Radford et al. 2021, arXiv 2103.00020, figure 3.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> clip_loss(q, c, logit_scale=14.3).dim()
        0
    """
    options.setdefault("direction", "symmetric")
    return info_nce_loss(queries, candidates, levels, **options)


@on_every_rank
def sup_con_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    **options: Unpack[ScaledOptions],
) -> Tensor:
    """Supervised contrastive loss ("out"): the mean over the row's positives of the cross-entropy.

        loss_i = LSE{z_ij: y_ij >= 0} - mean{z_ij: y_ij >= 1}

    For samples against themselves exclude the sample: `levels.exclude(ids, ids)`.

    Args:
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]`.
        levels: a level source; None: candidate i is the positive of query i.
        options: `ScaledOptions`.

    Returns:
        The loss, 0-d, or `[N]` for `reduction="none"`. Rows without positives have loss 0 and are
        left out of the mean; the public code of the paper counts them.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        Khosla et al., NeurIPS 2020, arXiv 2004.11362, eq. 2.

    Example:
        >>> x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
        >>> label, ids = torch.tensor([[0], [0], [1], [1]]), torch.arange(4)
        >>> sup_con_loss(x, x, GrainKeys(label, label).exclude(ids, ids), temperature=0.1).dim()
        0
    """
    problem = prepare(queries, candidates, levels, **options)
    return evaluate(problem, lambda channels: heads.sup_con(channels[0]), full=False)


@on_every_rank
def hard_negative_nce_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    hardness: float = 0.25,
    **options: Unpack[ScaledOptions],
) -> Tensor:
    """InfoNCE whose negatives weigh the more, the harder they are.

        loss_i = softplus(B - LSE{z_ij: y_ij >= 1})
        B = log n + LSE{(1 + hardness) z_ij} - LSE{hardness z_ij} over the n pairs with y_ij = 0

    The weights `exp(hardness z)`, normalised to mean 1, are part of the gradient.

    Args:
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]`.
        levels: a level source; None: candidate i is the positive of query i.
        hardness: above 0; towards 0 the loss becomes InfoNCE.
        options: `ScaledOptions`.

    Returns:
        The loss, 0-d, or `[N]` for `reduction="none"`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        Robinson et al., ICLR 2021, arXiv 2010.04592, eq. 4 (without debiasing); DHN-NCE, Koleilat
        et al. 2024, arXiv 2403.20253.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> hard = hard_negative_nce_loss(q, c, temperature=0.1)
        >>> bool(hard > info_nce_loss(q, c, temperature=0.1))
        True
    """
    b = check_number("hardness", hardness)
    problem = prepare(queries, candidates, levels, **options)
    size = problem.batch.levels.max_level + 1
    factors = problem.batch.scale.new_ones(2, size)
    factors[0, 0], factors[1, 0] = 1 + b, b

    def head(channels: Sequence[LevelStatistics]) -> Tensor:
        stronger, weaker = channels
        return heads.hard_negative_nce(stronger, stronger, weaker)

    problem = problem._replace(batch=problem.batch._replace(factors=factors))
    return evaluate(problem, head, full=False)


@on_every_rank
def gist_embed_loss(
    queries: Tensor,
    candidates: Tensor,
    guide_queries: Tensor,
    guide_candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    margin: float = 0.0,
    margin_strategy: Literal["absolute", "relative"] = "absolute",
    **options: Unpack[ScaledOptions],
) -> Tensor:
    """InfoNCE without the negatives that a guide model finds as good as the positive.

    A negative is ignored where its guide similarity is above the ceiling: that of the row's (best)
    positive minus the margin, or, `"relative"`, minus that share of its magnitude. The same as
    `info_nce_loss` with `levels.false_negative_margin(margin, reference=(guide_queries,
    guide_candidates))`, which any other loss takes too. GISTEmbedLoss of sentence-transformers is
    `direction="joint"` with `joint_blocks=("query_query", "candidate_candidate")`.

    Args:
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]`.
        guide_queries: embeddings of the guide `[N, E]`; cosine similarity, no gradient.
        guide_candidates: embeddings of the guide `[M, E]`.
        levels: a level source; None: candidate i is the positive of query i.
        margin: in units of the cosine, or a share of it; 0 to 1 for `"relative"`.
        margin_strategy: `"absolute"` (default) or `"relative"`.
        options: `ScaledOptions`.

    Returns:
        The loss, 0-d, or `[N]` for `reduction="none"`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        GISTEmbed, Solatorio 2024, arXiv 2402.16829; margins: NV-Retriever, Moreira et al. 2024,
        arXiv 2407.15831.

    Example:
        >>> q, c, g, h = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> gist_embed_loss(q, c, g, h, temperature=0.05).dim()
        0
    """
    check_choice("margin_strategy", margin_strategy, ("absolute", "relative"))
    source = as_source(levels).false_negative_margin(
        margin,
        relative=margin_strategy == "relative",
        reference=(guide_queries, guide_candidates),
    )
    return info_nce_loss(queries, candidates, source, **options)


class InfoNCELoss(LossModule):
    """`info_nce_loss` as a module; the same options, given once.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> InfoNCELoss(temperature=0.1, matryoshka_dims=(4, 8))(q, c).dim()
        0
    """

    function = staticmethod(info_nce_loss)


class CLIPLoss(LossModule):
    """`clip_loss` as a module; the same options, given once.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> CLIPLoss()(q, c, logit_scale=14.3).dim()
        0
    """

    function = staticmethod(clip_loss)


class SupConLoss(LossModule):
    """`sup_con_loss` as a module; the same options, given once.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> SupConLoss(temperature=0.1)(q, c).dim()
        0
    """

    function = staticmethod(sup_con_loss)


class HardNegativeNCELoss(LossModule):
    """`hard_negative_nce_loss` as a module; the same options, given once.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> HardNegativeNCELoss(temperature=0.1, hardness=0.5)(q, c).dim()
        0
    """

    function = staticmethod(hard_negative_nce_loss)


class GISTEmbedLoss(LossModule):
    """`gist_embed_loss` as a module; the same options, given once.

    Example:
        >>> q, c, g, h = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> GISTEmbedLoss(temperature=0.05, margin=0.1)(q, c, g, h).dim()
        0
    """

    function = staticmethod(gist_embed_loss)

    def forward(  # type: ignore[override]
        self,
        queries: Tensor,
        candidates: Tensor,
        guide_queries: Tensor,
        guide_candidates: Tensor,
        levels: LevelSource | None = None,
        **options: Any,
    ) -> Tensor:
        """The loss; the guide's embeddings `[N, E]` and `[M, E]` come with each call."""
        return gist_embed_loss(
            queries, candidates, guide_queries, guide_candidates, levels, **self._with(options)
        )
