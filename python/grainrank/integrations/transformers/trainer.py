"""A `Trainer` with in-batch losses, two towers or one, and cached gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from ...grad_cache import cached_loss
from ...losses.module import LossModule
from ...validation import check_choice, check_count
from ..loss_modules import check_learned, check_loss, world_group
from ..pair_labels import Label, PairLabels
from .towers import POOLINGS, Pooling, column_of, mini_batches, pooled, two_towers


class GradedTrainer(Trainer):
    """transformers' `Trainer` with an in-batch loss of grainrank.

        GradedTrainer(model, args, train_dataset=..., loss=MultiLevelRankingLoss(temperature=0.05))

    Models with two towers (CLIP, SigLIP: an output with `text_embeds` and `image_embeds`) take the
    whole batch; a model with one tower embeds one column after the other and its last hidden states
    are pooled. Override `embed` for any other model.

    A batch is one step's batch of negatives: with gradient accumulation the step has the mean of
    the micro-batches' losses. For more negatives in the same memory use `mini_batch_size`, and
    `gather_across_devices` on several processes. `evaluate` and `predict` give the embeddings as
    predictions, to `compute_metrics` too.

    Args:
        args: as `Trainer`'s, and everything else that it takes.
        loss: a loss module of grainrank. Without a scale of its own it takes the model's
            (`model.logit_scale.exp()`, as CLIP's). A parameter of the loss is trained with the
            model, on one process, and is not in its checkpoints.
        label: what the batch's `labels` `[N, ...]` are: `"grains"` (default), K integers for each
            pair, coarse to fine, a negative one is unknown; `"grades"`, the relevance of the
            query's own candidates, 0 to max_level, -1: ignored; None: no labels, candidate i
            belongs to query i.
        num_grains: K, where a row of labels also has the paths of the hard negatives.
        max_level: the highest grade.
        columns: None (default): a model with two towers. Else the prefixes of the inputs of the
            queries, the positives and, if there are any, hard negatives, `("query", "candidate")`:
            `query_input_ids`, `candidate_input_ids`, ... (`PairCollator` makes them).
        pooling: of one tower: `"mean"` (default) over the attention mask, `"cls"` (first token) or
            `"last"`.
        mini_batch_size: pairs that are embedded at a time, twice (GradCache); gradients are those
            of the whole batch. None (default): all at once.
        gather_across_devices: the batches of all processes are one.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value; inputs, outputs or labels
            that do not fit them.
    """

    def __init__(
        self,
        *args: Any,
        loss: LossModule,
        label: Label | None = "grains",
        num_grains: int | None = None,
        max_level: int | None = None,
        columns: Sequence[str] | None = None,
        pooling: Pooling = "mean",
        mini_batch_size: int | None = None,
        gather_across_devices: bool = False,
        **options: Any,
    ) -> None:
        check_loss(loss)
        check_choice("pooling", pooling, POOLINGS)
        if columns is not None and (isinstance(columns, str) or len(columns) < 2):
            raise ValueError(
                f"columns must be the names of two columns or more, got {columns!r}; "
                f"pass ('query', 'candidate')"
            )
        if mini_batch_size is not None:
            check_count("mini_batch_size", mini_batch_size)
        super().__init__(*args, **options)
        if columns is not None and self.args.remove_unused_columns:
            raise ValueError(
                "args.remove_unused_columns must be False with columns, as the model does not know "
                "their names; pass TrainingArguments(..., remove_unused_columns=False)"
            )
        if self.args.label_names is None:
            self.label_names = ["labels"]  # else those of the model, and CLIP has none
        # The loss is a mean over the micro-batch: dividing by their number is left to Trainer.
        self.model_accepts_loss_kwargs = False
        self.loss = loss.to(self.args.device)
        check_learned(self.loss)
        self.pair_labels = PairLabels(label, num_grains, max_level)
        self.columns = None if columns is None else tuple(columns)
        self.pooling, self.mini_batch_size = pooling, mini_batch_size
        self.gather_across_devices = gather_across_devices
        if not self.loss.has_scale and not hasattr(self._model(), "logit_scale"):
            raise ValueError(
                "loss must have a temperature or logit_scale, as the model has no logit_scale"
            )

    def embed(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Queries, positives and hard negatives, `[n, D]` each, of a batch without its labels."""
        if self.columns is None:
            return two_towers(model(**inputs))
        found = []
        for column in self.columns:
            given = column_of(inputs, column)
            found.append(pooled(model(**given), given.get("attention_mask"), self.pooling))
        return tuple(found)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss; with return_outputs also the embeddings."""
        given = dict(inputs)
        labels = given.pop("labels", None)
        outputs: dict[str, Tensor] = {}

        def loss(*embeddings: Tensor) -> Tensor:
            if return_outputs:
                outputs.update(self._named(embeddings))
            return self._loss(embeddings, labels)

        if self.mini_batch_size is None:
            total = loss(*self.embed(model, given))
        else:
            total = cached_loss(
                lambda batch: self.embed(model, batch),
                mini_batches(given, _rows(given), self.mini_batch_size),
                loss,
                module=model,
            )
        return (total, outputs) if return_outputs else total

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """The loss, the embeddings as predictions, and the labels."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            total, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return total.detach(), None, None
        return total.detach(), tuple(outputs.values()), inputs.get("labels")

    def create_optimizer(self, *args: Any, **options: Any) -> torch.optim.Optimizer:
        """`Trainer`'s, and the parameters of the loss."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **options)
        learned = [p for p in self.loss.parameters() if p.requires_grad]
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        new = [p for p in learned if id(p) not in known]
        if new:
            optimizer.add_param_group({"params": new, "weight_decay": 0.0})
        return optimizer

    def _loss(self, embeddings: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        queries = embeddings[0]
        levels = self.pair_labels.levels(labels, len(queries), len(embeddings) - 1, queries.device)
        options: dict[str, Any] = {"group": world_group()} if self.gather_across_devices else {}
        if not self.loss.has_scale:
            options["logit_scale"] = self._model().logit_scale.exp()
        total: Tensor = self.loss(queries, torch.cat(list(embeddings[1:])), levels, **options)
        return total

    def _named(self, embeddings: Sequence[Tensor]) -> dict[str, Tensor]:
        names = ("text", "image") if self.columns is None else self.columns
        return {f"{name}_embeds": e.detach() for name, e in zip(names, embeddings, strict=False)}

    def _model(self) -> Any:
        return self.accelerator.unwrap_model(self.model)


def _rows(inputs: Mapping[str, Any]) -> int:
    return next(len(v) for v in inputs.values() if isinstance(v, Tensor) and v.dim() > 0)
