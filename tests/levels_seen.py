"""The levels that a backend sees, read off its tables."""

from __future__ import annotations

import torch
from torch import Tensor

from grainrank import LevelSource, level_statistics


def seen(
    levels: LevelSource | None,
    backend: str,
    n: int,
    m: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The matrix of levels that the backend sees: one candidate at a time is made to count."""
    queries = torch.ones(n, m, dtype=dtype)
    out = torch.full((n, m), -1, dtype=torch.int64)
    # Logits 1..m in each row; with powers of 2 as logits, `total` would name its columns, but m
    # columns need m bits: 16 at a time, exactly in float32.
    for start in range(0, m, 16):
        candidates = torch.zeros(m, m, dtype=dtype)
        for bit, j in enumerate(range(start, min(start + 16, m))):
            candidates[j, 0] = 2.0**bit
        stats = level_statistics(
            queries,
            candidates,
            levels,
            logit_scale=1.0,
            normalize=False,
            backend=backend,  # type: ignore[arg-type]
        )
        for bit, j in enumerate(range(start, min(start + 16, m))):
            named = (stats.total.long() >> bit) & 1  # [N, L + 1]
            assert (named.sum(dim=1) <= 1).all()
            found = named.sum(dim=1) == 1
            out[found, j] = named.argmax(dim=1)[found]
    return out
