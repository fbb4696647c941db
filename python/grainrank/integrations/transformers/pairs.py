"""Batches of text pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


class PairCollator:
    """Tokenises text columns: `query_input_ids`, `candidate_input_ids`, ..., and `labels`.

    Args:
        tokenizer: a tokenizer of transformers.
        columns: names of the text columns, queries first, then positives, then hard negatives.
        label: name of the label column, lists of integers; it may be missing.
        max_length: tokens of a text; longer ones are cut. None (default): the model's limit.

    Raises:
        KeyError: a row without one of the columns.
        ValueError: labels of different lengths.
    """

    def __init__(
        self,
        tokenizer: Any,
        columns: Sequence[str] = ("query", "candidate"),
        *,
        label: str = "labels",
        max_length: int | None = None,
    ) -> None:
        self.tokenizer, self.columns = tokenizer, tuple(columns)
        self.label, self.max_length = label, max_length

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch: dict[str, torch.Tensor] = {}
        for column in self.columns:
            if column not in rows[0]:
                raise KeyError(
                    f"the data set must have the text column {column!r}, got {list(rows[0])}; set "
                    f"args.remove_unused_columns=False, or pass columns="
                )
            found = self.tokenizer(
                [row[column] for row in rows],
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            )
            batch |= {f"{column}_{key}": value for key, value in found.items()}
        if self.label in rows[0]:
            labels = [row[self.label] for row in rows]
            try:
                batch["labels"] = torch.as_tensor(labels)
            except ValueError as error:
                raise ValueError(
                    f"column {self.label!r} must have as many integers in each row ({error}); "
                    f"fill up unknown grains with -1"
                ) from error
        return batch
