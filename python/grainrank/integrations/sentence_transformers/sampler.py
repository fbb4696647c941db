"""Batches that mix grains, for the training arguments of sentence-transformers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from sentence_transformers.base.sampler import DefaultBatchSampler

from ...rl.sampler import GradedBatchSampler as _Sampler


class GradedBatchSampler(DefaultBatchSampler):
    """Random anchors, and neighbours that share some of their grains, in every batch.

        SentenceTransformerTrainingArguments(..., batch_sampler=GradedBatchSampler)
        ... batch_sampler=functools.partial(GradedBatchSampler, neighbour_share=0.5)

    The grains come from the label column of the data set, a list of K integers in each row, coarse
    to fine (`label="grains"`). Every row is an anchor once an epoch; the epoch has more batches
    than with random ones, as a part of each is neighbours. See `grainrank.rl.GradedBatchSampler`.

    Args:
        dataset: a `datasets.Dataset` with a label column.
        batch_size: rows of a batch.
        drop_last: leave out the last batch where it would have fewer rows.
        valid_label_columns: names of label columns; the first that the data set has is read.
        generator: not used; the batches depend on `seed` and the epoch.
        seed: 0 or more.
        neighbour_share: share of the batch, at least 0 and below 1.
        num_grains: the leading columns of the label that are the pair's path; None: all.

    Raises:
        ValueError: a data set without a label column, or labels that are not lists of integers.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
        *,
        neighbour_share: float = 0.25,
        num_grains: int | None = None,
    ) -> None:
        super().__init__(
            dataset,
            batch_size=batch_size,
            drop_last=drop_last,
            valid_label_columns=valid_label_columns,
            generator=generator,
            seed=seed,
        )
        keys = _keys(dataset, valid_label_columns or [])[:, :num_grains]
        self._sampler = _Sampler(
            keys,
            # The last batch of a small evaluation set has what there is.
            batch_size if drop_last else min(batch_size, len(keys)),
            hard_share=0.0,
            neighbour_share=neighbour_share,
            seed=seed,
            drop_last=drop_last,
        )

    def __iter__(self) -> Iterator[list[int]]:
        self._sampler.set_epoch(self.epoch)
        return iter(self._sampler)

    def __len__(self) -> int:
        return len(self._sampler)


def _keys(dataset: Any, names: list[str]) -> torch.Tensor:
    """`[N, K]`."""
    for name in names:
        if name in dataset.column_names:
            break
    else:
        raise ValueError(
            f"dataset must have a label column ({', '.join(map(repr, names))}) with the grains of "
            f"each row, got the columns {dataset.column_names}"
        )
    try:
        keys = torch.tensor(list(dataset[name]))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"column {name!r} must hold lists of integers, as many in each row ({error}); "
            f"fill up unknown grains with -1"
        ) from error
    return keys[:, None] if keys.dim() == 1 else keys
