"""The mean of rewards by their weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_rl_rewards import random

from grainrank.rl import weighted_reward


def test_weights() -> None:
    a, b = torch.tensor([[1.0, 0.0, 0.5]]), torch.tensor([[1.0, -1.0, 0.0]])
    assert torch.equal(weighted_reward(a, b), torch.tensor([[1.0, -0.5, 0.25]]))
    for weights in ([3, 1], (0.75, 0.25), torch.tensor([3.0, 1.0])):
        expected = torch.tensor([[1.0, -0.25, 0.375]])
        assert torch.equal(weighted_reward(a, b, weights=weights), expected)
    assert torch.equal(weighted_reward(a, b, weights=[0, 2]), b)
    assert torch.equal(weighted_reward(a), a)
    assert weighted_reward(a.double(), b).dtype == torch.float64
    assert weighted_reward(a, b).dtype == torch.float32


def test_a_weighted_reward_stays_within_its_parts() -> None:
    parts = [random(50, 20, seed=seed, dtype=torch.float64) for seed in range(3)]
    parts = [torch.stack([x, x.abs().sign()]) for x in parts]
    for seed in range(20):
        weights = random(3, seed=seed).exp().tolist()
        reward = weighted_reward(*parts, weights=weights)
        stack = torch.stack(parts)
        assert (reward >= stack.amin(dim=0)).all()
        assert (reward <= stack.amax(dim=0)).all()
        assert (reward[1] == 1).all()
        expected = sum(w * x for w, x in zip(weights, parts, strict=True)) / sum(weights)
        torch.testing.assert_close(reward, expected)


def test_no_gradient_flows() -> None:
    a = torch.ones(2, 3, requires_grad=True)
    assert not weighted_reward(a, a).requires_grad


A = torch.zeros(2, 3)
WEIGHTED: dict[str, tuple[tuple[Any, ...], Any, type[Exception], str]] = {
    "nothing": ((), None, ValueError, "rewards must be one tensor or more, got none"),
    "a list": ((A, [1.0]), None, TypeError, r"rewards\[1\] must be a torch.Tensor, got list"),
    "integers": ((A.long(),), None, TypeError, r"rewards\[0\] must be floating, got torch.int64"),
    "other shapes": (
        (A, A.T),
        None,
        ValueError,
        r"rewards\[1\] must have the shape .*\(2, 3\) .*got \(3, 2\)",
    ),
    "few weights": ((A, A), [1.0], ValueError, "weights must hold 2 numbers, .*got 1"),
    "a negative weight": (
        (A, A),
        [1.0, -0.5],
        ValueError,
        r"weights must be finite and not negative, got \[1.0, -0.5\]",
    ),
    "no weight": ((A, A), [0, 0], ValueError, r"weights must not all be 0, got \[0.0, 0.0\]"),
    "a number": ((A, A), 1.0, TypeError, "weights must be a sequence of numbers"),
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_errors_of_weights(name: str) -> None:
    rewards, weights, error, message = WEIGHTED[name]
    with pytest.raises(error, match=message):
        weighted_reward(*rewards, weights=weights)
