"""The loss for `Trainer(compute_loss_func=...)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...losses.module import LossModule
from ..loss_modules import check_loss
from ..pair_labels import Label, PairLabels
from .towers import two_towers


class GradedLossFunction:
    """`compute_loss_func` for models that return the embeddings of both sides, such as CLIP.

        Trainer(model, args, ..., compute_loss_func=GradedLossFunction(loss))

    The `labels` of a batch are the grains (or grades) of its pairs; `Trainer` drops them, as CLIP's
    forward does not know them, unless `TrainingArguments(remove_unused_columns=False)`. Each
    micro-batch is a batch of its own; with gradient accumulation the step has the mean of their
    losses, weighted by their labels, as `Trainer` leaves this division to the loss. The loss needs
    a fixed scale: it does not see the model, and its own parameters would not be trained;
    `GradedTrainer` takes the model's.

    Args:
        loss: a loss module of grainrank with a temperature or logit_scale.
        label, max_level: what the labels are, as in
            `grainrank.integrations.transformers.GradedTrainer`.
        embeddings: gives queries and candidates `[N, D]` of the model's output; None (default):
            `text_embeds` and `image_embeds`.

    Raises:
        TypeError, ValueError: a loss without a scale or with parameters; an output without
            embeddings; labels that do not fit.

    Example:
        >>> from types import SimpleNamespace
        >>> import grainrank
        >>> from grainrank.integrations.transformers import GradedLossFunction
        >>> loss = GradedLossFunction(grainrank.CLIPLoss(temperature=0.07), label=None)
        >>> outputs = SimpleNamespace(text_embeds=torch.eye(4), image_embeds=torch.eye(4))
        >>> loss(outputs, labels=None).dim()
        0
    """

    def __init__(
        self,
        loss: LossModule,
        *,
        label: Label | None = "grains",
        max_level: int | None = None,
        embeddings: Callable[[Any], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        check_loss(loss)
        if not loss.has_scale or list(loss.parameters()):
            raise ValueError(
                f"loss must have a fixed temperature or logit_scale, got {loss}; "
                f"use GradedTrainer for the scale of the model or a learned one"
            )
        self.loss = loss
        self.labels = PairLabels(label, max_level=max_level)
        self.embeddings = embeddings or two_towers

    def __call__(
        self,
        outputs: Any,
        labels: Tensor | None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The loss of a micro-batch, and its share of the step's loss."""
        if labels is None and self.labels.label is not None:
            raise ValueError(
                f"the batch has no labels, which label={self.labels.label!r} needs; give the data "
                f"set a column 'labels' and set TrainingArguments(remove_unused_columns=False), or "
                f"use label=None: text i belongs to picture i"
            )
        q, c = self.embeddings(outputs)
        total: Tensor = self.loss(q, c, self.labels.levels(labels, len(q), 1, q.device))
        if num_items_in_batch is None or labels is None:
            return total
        # Counted as `Trainer` counts them.
        return total * (labels.ne(-100).sum() / num_items_in_batch)
