"""What the metrics refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_metrics import ranks_of, run

from grainrank.metrics import (
    average_precision,
    grain_of_wrong_top,
    hierarchical_average_precision,
    level_violation_rate,
    mean_over_queries,
    ndcg_at,
    precision_at,
    recall_at,
    reciprocal_rank,
    success_at,
    top_level,
)
from grainrank.ranks import positive_ranks

RANKS = ranks_of(*run())
SMOOTH = positive_ranks(torch.ones(2, 1), torch.ones(2, 1), temperature=0.1)

WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "not ranks": (
        lambda: reciprocal_rank(torch.ones(3)),
        TypeError,
        "PositiveRanks, got Tensor; make",
    ),  # type: ignore[arg-type]
    "smooth": (
        lambda: top_level(SMOOTH),
        TypeError,
        "exact, .* smooth ones of torch.float32; call",
    ),
    "smooth violations": (lambda: level_violation_rate(SMOOTH), TypeError, "ranks must be exact"),
    "k is 0": (lambda: recall_at(RANKS, 0), ValueError, "k must be 1 or more, got 0"),
    "k is a float": (
        lambda: ndcg_at(RANKS, 1.0, gain="linear"),
        TypeError,
        "k must be an int, got float",
    ),  # type: ignore[arg-type]
    "k is a bool": (lambda: precision_at(RANKS, True), TypeError, "k must be an int, got bool"),
    "level 0": (
        lambda: success_at(RANKS, 1, 0),
        ValueError,
        r"min_level must lie in 1..L = 1..4, .* got 0",
    ),
    "level 5": (lambda: grain_of_wrong_top(RANKS, 5), ValueError, "min_level .* got 5"),
    "level is a float": (
        lambda: average_precision(RANKS, 1.0),
        TypeError,
        "min_level must be an int, got float",
    ),  # type: ignore[arg-type]
    "no gain": (lambda: ndcg_at(RANKS, 10), TypeError, "gain"),  # type: ignore[call-arg]
    "unknown gain": (
        lambda: ndcg_at(RANKS, gain="exp"),
        ValueError,
        "gain must be one of 'linear', 'exp2'",
    ),  # type: ignore[arg-type]
    "gain of level 0": (
        lambda: ndcg_at(RANKS, gain=[1, 2, 3, 4, 5]),
        ValueError,
        "gain must be 0 for level 0, got 1: .*subtract",
    ),
    "few gains": (
        lambda: ndcg_at(RANKS, gain=[0, 1]),
        ValueError,
        r"gain must hold L \+ 1 = 5 .* got 2",
    ),
    "negative gain": (
        lambda: ndcg_at(RANKS, gain=[0, -1, 1, 1, 1]),
        ValueError,
        "gain must be finite and not neg",
    ),
    "NaN relevance": (
        lambda: hierarchical_average_precision(RANKS, torch.full((5,), torch.nan)),
        ValueError,
        "relevance must be finite",
    ),
    "relevance is a number": (
        lambda: hierarchical_average_precision(RANKS, 1.0),
        TypeError,
        "relevance must be a sequence",  # type: ignore[arg-type]
    ),
    "matrix of gains": (
        lambda: ndcg_at(RANKS, gain=torch.ones(2, 5)),
        TypeError,
        "gain must hold numbers",
    ),
    "values of others": (
        lambda: mean_over_queries(torch.ones(3), RANKS),
        ValueError,
        r"\[N\] = \[30\], .* got \(3,\)",
    ),
    "values are a list": (
        lambda: mean_over_queries([1.0], RANKS),
        TypeError,
        "values must be a torch.Tensor",
    ),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name: str) -> None:
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()
