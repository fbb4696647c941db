"""The in-batch multi-level ranking loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import autograd, heads
from .backends import Backend, check_backend
from .heads import Negatives, Positives
from .levels import LevelSource, as_source
from .statistics import loss_statistics, rows_with_positive
from .validation import (
    check_choice,
    check_embeddings,
    check_finite,
    check_scale,
    check_workspace,
)

Reduction = Literal["mean", "sum", "none"]
NanPolicy = Literal["propagate", "raise"]

COARSE_WEIGHT = 0.1  # keeps recall@1 and gains most of the graded nDCG on real data


def _level_weights(
    weights: Sequence[float] | Tensor | None, max_level: int, scale: Tensor
) -> Tensor:
    """`[L]`, dtype and device of the scale."""
    if weights is None:
        result = scale.new_full((max_level,), COARSE_WEIGHT)
        result[-1] = 1.0
        return result
    if isinstance(weights, Tensor):
        result = weights.detach().to(dtype=scale.dtype, device=scale.device)
    elif isinstance(weights, Sequence) and not isinstance(weights, str):
        if any(isinstance(w, bool) or not isinstance(w, (int, float)) for w in weights):
            raise TypeError("level_weights must hold numbers, got " + repr(list(weights)))
        if any(not 0 <= w < float("inf") for w in weights):
            raise ValueError(f"level_weights must be finite and not negative, got {list(weights)}")
        result = torch.tensor(weights, dtype=scale.dtype, device=scale.device)
    else:
        raise TypeError(
            f"level_weights must be a sequence of numbers, a tensor or None, "
            f"got {type(weights).__name__}"
        )
    if tuple(result.shape) != (max_level,):
        raise ValueError(
            f"level_weights must have one weight for each of the L = {max_level} levels, "
            f"coarse to fine, got shape {tuple(result.shape)}"
        )
    return result


def multi_level_ranking_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    temperature: float | Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    positives: Positives = "exact",
    negatives: Negatives = "lower",
    level_weights: Sequence[float] | Tensor | None = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    backend: Backend = "auto",
    workspace_mb: float | None = None,
    nan: NanPolicy = "propagate",
    return_stats: bool = False,
) -> Any:
    """In-batch multi-level ranking loss: rank candidates by the grains they share with the query.

    For row i with logits `z_ij` and levels `y_ij`, and level weights `w_k`:

        loss_i = sum over k = 1..L of w_k * (LSE(P_k and N_k) - LSE(P_k))
        P_k = {j: y_ij = k} ("exact") or {y_ij >= k} ("at_least")
        N_k = {j: 0 <= y_ij < k} ("lower") or {y_ij = 0} ("unrelated")

    with LSE the log-sum-exp of the logits. A level without positives in the row adds nothing; pairs
    of level -1 take no part. With L = 1 it is InfoNCE (SupCon-in where a row has several
    positives). The N x M matrix is never stored (`backend="reference"` excepted); with `reduction`
    "mean" or "sum" the gradients are ready when the forward ends, with "none" the backward computes
    the similarities again.

    Args:
        queries: embeddings `[N, D]`, float16, bfloat16, float32 or float64.
        candidates: embeddings `[M, D]` of the same dtype and device.
        levels: a level source (`GrainKeys`, `DenseLevels`, ...); None: candidate i is the one
            positive of query i.
        temperature: logits are similarity / temperature; a number or a 0-d tensor, which may
            require a gradient. Exactly one of `temperature` and `logit_scale` must be given.
        logit_scale: logits are similarity * logit_scale: the factor itself, not its logarithm.
        positives: `"exact"` (default) or `"at_least"`.
        negatives: `"lower"` (default) or `"unrelated"`.
        level_weights: L numbers, `level_weights[k - 1]` for level k; None: 1 for the finest level,
            0.1 for the others.
        normalize: cosine similarity (default); False: dot product.
        reduction: `"mean"` over the rows that have a positive at any level (default), `"sum"`, or
            `"none"`: one loss for each row `[N]`, 0 for a row without a positive.
        backend: `"auto"` (default), `"cpu"` or `"reference"`. A named backend never falls back.
        workspace_mb: bound of the row block's memory in MiB; None: 64 MiB, or 1024 rows where these
            need more.
        nan: `"propagate"` (default): a NaN or infinity in the inputs shows in the loss; `"raise"`:
            ValueError with the row, at the cost of reading the inputs once more.
        return_stats: also return `LossStatistics`.

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
    q, c = check_embeddings(queries, candidates)
    source = as_source(levels)
    source.check(q.shape[0], c.shape[0], q.device)
    check_choice("positives", positives, ("exact", "at_least"))
    check_choice("negatives", negatives, ("lower", "unrelated"))
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    check_choice("nan", nan, ("propagate", "raise"))
    check_backend(backend, q.device)
    scale = check_scale(temperature, logit_scale, q)
    weights = _level_weights(level_weights, source.max_level, scale)
    workspace = check_workspace(workspace_mb)
    if nan == "raise":
        check_finite("queries", q)
        check_finite("candidates", c)

    if reduction == "none":
        tables = autograd.level_tables(
            q, c, scale, source, normalize, backend, workspace, full=return_stats
        )
        loss = heads.multi_level_nce(tables.lse, tables.count, weights, positives, negatives)
    else:
        loss, tables = autograd.multi_level_nce_sum(
            q, c, scale, source, weights, positives, negatives,
            normalize, backend, workspace, full=return_stats,
        )  # fmt: skip
        if reduction == "mean":
            loss = loss / rows_with_positive(tables.count).clamp_min(1)
    if not return_stats:
        return loss
    stats = loss_statistics(tables, scale, positives, negatives)
    return loss, stats


class MultiLevelRankingLoss(nn.Module):
    """`multi_level_ranking_loss` as a module; the same options, given once.

    A `temperature` or `logit_scale` that is an `nn.Parameter` is registered and learned. A model
    that owns its scale passes it with each call instead, e.g. `loss(q, c, levels,
    logit_scale=model.logit_scale.exp())`.

    Example:
        >>> loss = MultiLevelRankingLoss(temperature=0.07)
        >>> generator = torch.Generator().manual_seed(0)
        >>> q, c = torch.randn(2, 4, 8, generator=generator)
        >>> loss(q, c).dim()
        0
    """

    def __init__(
        self,
        *,
        temperature: float | Tensor | None = None,
        logit_scale: float | Tensor | None = None,
        positives: Positives = "exact",
        negatives: Negatives = "lower",
        level_weights: Sequence[float] | Tensor | None = None,
        normalize: bool = True,
        reduction: Reduction = "mean",
        backend: Backend = "auto",
        workspace_mb: float | None = None,
        nan: NanPolicy = "propagate",
        return_stats: bool = False,
    ) -> None:
        super().__init__()
        if temperature is not None and logit_scale is not None:
            raise ValueError(
                "exactly one of temperature and logit_scale must be given, got both; "
                "logits are similarity / temperature, or similarity * logit_scale"
            )
        self.temperature = temperature
        self.logit_scale = logit_scale
        self.positives: Positives = positives
        self.negatives: Negatives = negatives
        self.level_weights = level_weights
        self.normalize = normalize
        self.reduction: Reduction = reduction
        self.backend: Backend = backend
        self.workspace_mb = workspace_mb
        self.nan: NanPolicy = nan
        self.return_stats = return_stats

    def forward(
        self,
        queries: Tensor,
        candidates: Tensor,
        levels: LevelSource | None = None,
        *,
        temperature: float | Tensor | None = None,
        logit_scale: float | Tensor | None = None,
    ) -> Any:
        """The loss; a `temperature` or `logit_scale` given here replaces the module's."""
        if temperature is None and logit_scale is None:
            temperature, logit_scale = self.temperature, self.logit_scale
        return multi_level_ranking_loss(
            queries,
            candidates,
            levels,
            temperature=temperature,
            logit_scale=logit_scale,
            positives=self.positives,
            negatives=self.negatives,
            level_weights=self.level_weights,
            normalize=self.normalize,
            reduction=self.reduction,
            backend=self.backend,
            workspace_mb=self.workspace_mb,
            nan=self.nan,
            return_stats=self.return_stats,
        )

    def extra_repr(self) -> str:
        scale = "logit_scale" if self.temperature is None else "temperature"
        return (
            f"{scale}={getattr(self, scale)}, positives={self.positives!r}, "
            f"negatives={self.negatives!r}, level_weights={self.level_weights}, "
            f"reduction={self.reduction!r}"
        )
