"""The demo on 48 codes in a second: small data, small batches and a small table of n-grams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grainrank.data import icd10
from grainrank.demo import encoder, text, tfidf, training

CODES, TERMS = 48, 3


def data() -> icd10.Icd10:
    """48 codes in 2 chapters, 4 blocks, 16 categories; a term shares a word with its code."""
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(CODES)
    grains = torch.stack([index // 24, index // 12, index // 3, index], dim=1)
    names, others = _words(CODES, generator), _words(CODES * TERMS * 3, generator)

    def queries(first: int, count: int) -> icd10.Queries:
        targets = torch.arange(count) % CODES
        texts = [f"{names[t]} {others[first + i]}" for i, t in enumerate(targets.tolist())]
        near: Tensor = torch.arange(count) % 7 == 3
        return icd10.Queries(tuple(texts), targets, near)

    splits = ("train", "validation_seen", "validation_unseen", "test_seen", "test_unseen")
    counts = (CODES * TERMS, 24, 24, 36, 36)
    starts = torch.tensor((0, *counts)).cumsum(0).tolist()
    return icd10.Icd10(
        codes=tuple(f"C{i:02}" for i in range(CODES)),
        candidates=tuple(f"the {name} disease" for name in names),
        grains=grains,
        grain_names=("chapter", "block", "category", "code"),
        queries={n: queries(s, c) for n, s, c in zip(splits, starts, counts, strict=False)},
    )


def shrink(change: Callable[[Any, str, Any], None]) -> None:
    """`change` is setattr, or that of a monkeypatch."""
    change(training, "BATCH", 32)
    for module in (encoder, text, tfidf):
        change(module, "BUCKETS", 1024)


def _words(count: int, generator: torch.Generator) -> list[str]:
    letters = torch.randint(97, 123, (count, 6), generator=generator).tolist()
    return ["".join(map(chr, word)) for word in letters]
