"""Losses for `SentenceTransformerTrainer`, plain and with cached gradients."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import CachedLossMixin, has_static_embedding_input
from torch import Tensor, nn

from ... import losses
from ...losses.module import SCALES, LossModule
from ...validation import check_count
from ..loss_modules import check_learned, check_loss, world_group
from ..pair_labels import Label, PairLabels

_TEMPERATURE = 0.05  # scale 20, the default of sentence-transformers
_CITATION = """
@misc{elva,
      title={ELVA: Exploring Ranking-Driven Universal Multimodal Retrieval},
      eprint={2606.20280},
      archivePrefix={arXiv},
      url={https://arxiv.org/abs/2606.20280},
}
"""


class GradedLoss(nn.Module):
    """Any in-batch loss of grainrank over the columns of a data set: anchor, positive, negatives...

    The first text column has the queries, the others the candidates: the positives, then hard
    negatives if there are any. The label column (`label`, `labels`, `score` or `scores`) says what
    a pair is:

    - `label="grains"` (default): a list of K integers, the grain path of the pair, coarse to fine,
      for example category, product line, product; a negative integer is unknown. Two pairs share
      as many levels as leading grains. Hard negatives share none, unless `num_grains=K` says that
      a row goes on with the path of each.
    - `label="grades"`: a list with the relevance of the query's own candidates, 0 to `max_level`,
      -1: ignored. All other candidates of the batch are negatives.
    - `label=None`: no label column; the loss is the plain one (InfoNCE).

    Args:
        model: the `SentenceTransformer`.
        loss: a loss module of grainrank; its options, such as `temperature`, `direction` and
            `matryoshka_dims`, are its own. A learned temperature is trained with the model.
        label, num_grains, max_level: the label column, see above.
        gather_across_devices: the batches of all processes are one: loss and gradients under DDP
            are those of one process on the whole batch.

    Raises:
        TypeError, ValueError: an argument, a label or a column of the wrong kind or size.

    Example:
        >>> from grainrank.integrations.sentence_transformers import GradedLoss
        >>> import grainrank
        >>> loss = GradedLoss(torch.nn.Identity(), grainrank.CoSENTLoss(temperature=0.05))
        >>> pairs = [torch.eye(4), torch.eye(4)]
        >>> loss.compute_loss_from_embeddings(pairs, torch.tensor([[0, 0], [0, 1], [1, 2], [1, 2]]))
        tensor(3.6109)
    """

    def __init__(
        self,
        model: Any,
        loss: LossModule,
        *,
        label: Label | None = "grains",
        num_grains: int | None = None,
        max_level: int | None = None,
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__()
        check_loss(loss)
        self.model = model
        self.loss = loss
        self.labels = PairLabels(label, num_grains, max_level)
        self.gather_across_devices = gather_across_devices

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> Tensor:
        """The loss of the columns, as the trainer calls it."""
        embeddings = [self.model(column)["sentence_embedding"] for column in sentence_features]
        return self.compute_loss_from_embeddings(embeddings, labels)

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None = None
    ) -> Tensor:
        """The loss of the columns' embeddings, `[N, D]` each."""
        if len(embeddings) < 2:
            raise ValueError(
                f"the data set must have two text columns or more, queries and positives first, "
                f"got {len(embeddings)}"
            )
        queries = embeddings[0]
        levels = self.labels.levels(labels, len(queries), len(embeddings) - 1, queries.device)
        check_learned(self.loss)
        options: dict[str, Any] = {"group": world_group()} if self.gather_across_devices else {}
        total: Tensor = self.loss(queries, torch.cat(embeddings[1:]), levels, **options)
        return total

    def get_config_dict(self) -> dict[str, Any]:
        """For the model card."""
        return {
            "loss": str(self.loss),
            **self.labels.config(),
            "gather_across_devices": self.gather_across_devices,
        }

    @property
    def citation(self) -> str:
        return _CITATION


class CachedGradedLoss(CachedLossMixin, GradedLoss):
    """`GradedLoss` for batches whose activations do not fit: GradCache, arXiv 2101.06983.

    The texts are embedded in mini-batches, twice; the loss and all gradients, a learned
    temperature's too, are those of the plain loss on the whole batch.

    Args:
        model, loss, label, num_grains, max_level, gather_across_devices: as in `GradedLoss`.
        mini_batch_size: texts that are embedded at a time.
        mini_batch_num_tokens: instead, as many texts as have this many tokens together; None
            (default): `mini_batch_size` texts.
        show_progress_bar: of the mini-batches.

    Raises:
        TypeError, ValueError: as `GradedLoss`; sizes below 1; a model that begins with a
            `StaticEmbedding`.
    """

    def __init__(
        self,
        model: Any,
        loss: LossModule,
        *,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        show_progress_bar: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, loss, **options)
        if isinstance(model, SentenceTransformer) and has_static_embedding_input(model):
            raise ValueError(
                "model must not begin with a StaticEmbedding, whose inputs cannot be cut into "
                "mini-batches; use the loss without Cached, as these models need little memory"
            )
        self.mini_batch_size = check_count("mini_batch_size", mini_batch_size)
        if mini_batch_num_tokens is not None:
            check_count("mini_batch_num_tokens", mini_batch_num_tokens)
        self.mini_batch_num_tokens = mini_batch_num_tokens
        self.show_progress_bar = show_progress_bar
        self._own: list[tuple[nn.Parameter, Tensor]] = []

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> Tensor:
        """The loss; its `backward()` embeds the texts again."""
        total: Tensor = self.forward_cached(sentence_features, labels)
        own, self._own = self._own, []
        if own:
            total.register_hook(partial(_add, own))
        return total

    def calculate_loss(
        self,
        reps: list[list[Tensor]],
        labels: Tensor | None = None,
        *,
        with_backward: bool = False,
    ) -> Tensor:
        """The loss of the mini-batches' embeddings; with_backward: and their gradients."""
        embeddings = [torch.cat(parts) for parts in reps]
        total = self.compute_loss_from_embeddings(embeddings, labels)
        if not with_backward:
            return total
        leaves = [part for parts in reps for part in parts]
        learned = [p for p in self.loss.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(total, [*leaves, *learned], allow_unused=True)
        for leaf, gradient in zip(leaves, gradients, strict=False):
            leaf.grad = gradient
        # Not added to the parameters yet: what backward() multiplies by is known there alone.
        self._own = [
            (parameter, gradient)
            for parameter, gradient in zip(learned, gradients[len(leaves) :], strict=True)
            if gradient is not None
        ]
        return total.detach()

    def get_config_dict(self) -> dict[str, Any]:
        """For the model card."""
        sizes = {
            "mini_batch_size": self.mini_batch_size,
            "mini_batch_num_tokens": self.mini_batch_num_tokens,
        }
        return super().get_config_dict() | sizes


class MultiLevelRankingLoss(GradedLoss):
    """`GradedLoss` with `grainrank.MultiLevelRankingLoss`: three lines from InfoNCE to grains.

        loss = MultiLevelRankingLoss(model)   # instead of MultipleNegativesRankingLoss(model)

    Args:
        model, label, num_grains, max_level, gather_across_devices: as in `GradedLoss`.
        options: of `grainrank.MultiLevelRankingLoss`; the temperature is 0.05 unless they say
            otherwise (sentence-transformers' scale of 20).
    """

    def __init__(
        self,
        model: Any,
        *,
        label: Label | None = "grains",
        num_grains: int | None = None,
        max_level: int | None = None,
        gather_across_devices: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            model,
            _multi_level(options),
            label=label,
            num_grains=num_grains,
            max_level=max_level,
            gather_across_devices=gather_across_devices,
        )


class CachedMultiLevelRankingLoss(CachedGradedLoss):
    """`CachedGradedLoss` with `grainrank.MultiLevelRankingLoss`.

    Args:
        model, label, num_grains, max_level, gather_across_devices: as in `GradedLoss`.
        mini_batch_size, mini_batch_num_tokens, show_progress_bar: as in `CachedGradedLoss`.
        options: as in `MultiLevelRankingLoss`.
    """

    def __init__(
        self,
        model: Any,
        *,
        label: Label | None = "grains",
        num_grains: int | None = None,
        max_level: int | None = None,
        gather_across_devices: bool = False,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        show_progress_bar: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            model,
            _multi_level(options),
            label=label,
            num_grains=num_grains,
            max_level=max_level,
            gather_across_devices=gather_across_devices,
            mini_batch_size=mini_batch_size,
            mini_batch_num_tokens=mini_batch_num_tokens,
            show_progress_bar=show_progress_bar,
        )


def _multi_level(options: dict[str, Any]) -> losses.MultiLevelRankingLoss:
    """With this library's usual temperature where the options have no scale."""
    default = {} if any(name in options for name in SCALES) else {"temperature": _TEMPERATURE}
    return losses.MultiLevelRankingLoss(**default, **options)


def _add(own: list[tuple[nn.Parameter, Tensor]], upstream: Tensor) -> None:
    for parameter, gradient in own:
        given = gradient * upstream.to(gradient.dtype)
        parameter.grad = given if parameter.grad is None else parameter.grad + given
