"""Embeddings of a batch: of a model with two towers, or of one that embeds every column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Pooling = Literal["mean", "cls", "last"]
POOLINGS = ("mean", "cls", "last")


def two_towers(outputs: Any) -> tuple[Tensor, Tensor]:
    """The embeddings of texts and of pictures, `[N, D]` each, of CLIP's output and the like."""
    q, c = (getattr(outputs, name, None) for name in ("text_embeds", "image_embeds"))
    if q is None or c is None:
        raise ValueError(
            f"the model must return text_embeds and image_embeds, got {type(outputs).__name__}; "
            f"say columns=('query', 'candidate') for a model that embeds one column at a time"
        )
    return q, c


def pooled(outputs: Any, mask: Tensor | None, pooling: Pooling) -> Tensor:
    """`[n, D]` of the last hidden states `[n, T, D]`; `mask` `[n, T]`, 1 for tokens."""
    hidden: Tensor = outputs.last_hidden_state
    if pooling == "cls":
        return hidden[:, 0]
    if mask is None:
        return hidden.mean(dim=1) if pooling == "mean" else hidden[:, -1]
    if pooling == "last":
        places = torch.arange(hidden.shape[1], device=hidden.device)
        last = (places * mask).argmax(dim=1)  # of either side's padding
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    weights = mask[:, :, None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)


def column_of(inputs: Mapping[str, Any], column: str) -> dict[str, Any]:
    """The inputs `{column}_input_ids`, ... under the model's own names."""
    prefix = f"{column}_"
    found = {key[len(prefix) :]: v for key, v in inputs.items() if key.startswith(prefix)}
    if not found:
        raise ValueError(
            f"the batch must have inputs that start with {prefix!r}, got {list(inputs)}; "
            f"PairCollator makes them, with args.remove_unused_columns=False"
        )
    return found


def mini_batches(inputs: Mapping[str, Any], rows: int, size: int) -> Sequence[dict[str, Any]]:
    """Slices of `size` of the `rows` rows; what is no tensor belongs to each."""
    for key, value in inputs.items():
        if isinstance(value, Tensor) and value.dim() > 0 and len(value) != rows:
            raise ValueError(
                f"input {key!r} must have a row for each of the {rows} pairs to be cut into "
                f"mini-batches, got shape {tuple(value.shape)}; use mini_batch_size=None"
            )
    return [
        {
            key: value[a : a + size] if isinstance(value, Tensor) and value.dim() > 0 else value
            for key, value in inputs.items()
        }
        for a in range(0, rows, size)
    ]
