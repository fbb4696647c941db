"""What the rewards refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_rl_rewards import few_values, graded

from grainrank import DenseLevels
from grainrank.rl import margin_reward, ranking_reward

R, C = few_values()
Y = DenseLevels(graded())
SHARED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rollouts are a list": (
        {"rollouts": [[[1.0]]]},
        TypeError,
        "rollouts must be a torch.Tensor, got list",
    ),
    "integer rollouts": (
        {"rollouts": R.long()},
        TypeError,
        "rollouts must be float16, .*got torch.int64; convert them with rollouts.float",
    ),
    "one rollout": (
        {"rollouts": R[0]},
        ValueError,
        r"rollouts must have shape \[G, N, D\], got \(9, 4\); pass rollouts\[None\]",
    ),
    "four dimensions": ({"rollouts": R[None]}, ValueError, r"got \(1, 3, 9, 4\)$"),
    "no rollout": ({"rollouts": R[:0]}, ValueError, r"at least one .*got \(0, 9, 4\); skip"),
    "a NaN": (
        {"rollouts": torch.cat([R, R[:1].clone().index_fill_(1, torch.tensor([5]), math.nan)])},
        ValueError,
        "rollouts must be finite, got NaN or infinity in row 5 of rollout 3; look",
    ),
    "an infinite candidate": (
        {"candidates": C.clone().index_fill_(0, torch.tensor([7]), math.inf)},
        ValueError,
        "candidates must be finite, got NaN or infinity in row 7; look",
    ),
    "candidates are a list": (
        {"candidates": [[1.0]]},
        TypeError,
        "candidates must be a torch.Tensor, got list",
    ),
    "other features": ({"candidates": C[:, :2]}, ValueError, "candidates must have D = 4 .* got 2"),
    "other dtype": ({"candidates": C.double()}, TypeError, "candidates must have the dtype"),
    "levels are a tensor": ({"levels": graded()}, TypeError, "levels must be None or a level"),
    "levels of another shape": (
        {"levels": DenseLevels(graded().T)},
        ValueError,
        r"levels must have shape \[N, M\] = \[9, 23\], got \(23, 9\)",
    ),
    "too few for the diagonal": (
        {"levels": None, "candidates": C[:5]},
        ValueError,
        "candidates must have at least N = 9 .*got 5",
    ),
    "a margin of their own": (
        {"levels": Y.false_negative_margin(0.1)},
        ValueError,
        "levels of rewards must not depend on the rollouts, .*pass reference=",
    ),
    "unknown backend": ({"backend": "gpu"}, ValueError, "backend must be one of .*got 'gpu'"),
    "no workspace": ({"workspace_mb": 0}, ValueError, "workspace_mb must be positive .*got 0"),
}
RANKING: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown rule": (
        {"rule": "map"},
        ValueError,
        "rule must be one of 'concordance', 'ndcg', got 'map'",
    ),
    "unknown average": (
        {"average": "mean"},
        ValueError,
        "average must be one of 'macro', 'micro', got 'mean'",
    ),
    "k of concordance": ({"k": 5}, ValueError, 'k and gain belong to rule="ndcg", .*k=5 and gain='),
    "gain of concordance": ({"gain": "exp2"}, ValueError, "k and gain .*gain='exp2'; leave"),
    "average of nDCG": (
        {"rule": "ndcg", "gain": "linear", "average": "macro"},
        ValueError,
        "average belongs to rule=\"concordance\", .*average='macro'",
    ),
    "no gain": ({"rule": "ndcg"}, TypeError, 'gain must be named for rule="ndcg", got None; pass'),
    "unknown gain": ({"rule": "ndcg", "gain": "exp"}, ValueError, "gain must be one of 'linear'"),
    "few gains": ({"rule": "ndcg", "gain": [0, 1]}, ValueError, r"gain must hold L \+ 1 = 4 .*2"),
    "k is 0": ({"rule": "ndcg", "gain": "exp2", "k": 0}, ValueError, "k must be 1 or more, got 0"),
}
MARGIN: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no target": ({"target": 0.0}, ValueError, "target must be positive and finite, got 0.0"),
    "wide target": ({"target": 1.5}, ValueError, "target must lie in 0 < target <= 1, .*got 1.5"),
    "target is a text": ({"target": "0.1"}, TypeError, "target must be a number, got str"),
    "unknown gap": (
        {"of": "median"},
        ValueError,
        "of must be one of 'extremes', 'means', got 'median'",
    ),
}


@pytest.mark.parametrize("name", SHARED | RANKING)
def test_errors_of_ranking(name: str) -> None:
    arguments, error, message = (SHARED | RANKING)[name]
    with pytest.raises(error, match=message):
        ranking_reward(**{"rollouts": R, "candidates": C, "levels": Y, **arguments})


@pytest.mark.parametrize("name", SHARED | MARGIN)
def test_errors_of_margin(name: str) -> None:
    arguments, error, message = (SHARED | MARGIN)[name]
    given: dict[str, Any] = {"rollouts": R, "candidates": C, "levels": Y, "target": 0.2}
    with pytest.raises(error, match=message):
        margin_reward(**(given | arguments))
