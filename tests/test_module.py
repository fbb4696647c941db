"""`MultiLevelRankingLoss`: the same numbers as the function, and an `nn.Module` like any other."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from grainrank import LossStatistics, MultiLevelRankingLoss, multi_level_ranking_loss
from grainrank.testing import Shape, make_inputs

INPUTS = make_inputs(Shape(8, 12, 6, 3))
Q, C, LEVELS = INPUTS.queries, INPUTS.candidates, INPUTS.levels


def test_options_reach_the_loss() -> None:
    """Each option changes the result, as it does in the function."""
    plain = multi_level_ranking_loss(Q, C, LEVELS, temperature=0.3)
    options: list[dict[str, Any]] = [
        {"positives": "at_least"},
        {"negatives": "unrelated"},
        {"level_weights": [1.0, 1.0, 1.0]},
        {"normalize": False},
        {"reduction": "sum"},
        {"reduction": "none"},
        {"return_stats": True},
    ]
    for option in options:
        module = MultiLevelRankingLoss(temperature=0.3, **option)
        got = module(Q, C, LEVELS)
        expected = multi_level_ranking_loss(Q, C, LEVELS, temperature=0.3, **option)
        if option == {"return_stats": True}:
            assert isinstance(got[1], LossStatistics)
            got, expected = got[0], expected[0]
        else:
            assert not torch.equal(got, plain)
        assert torch.equal(got, expected)
    for option in ({"nan": "raise"}, {"backend": "none"}, {"workspace_mb": 1e-9}):
        with pytest.raises(ValueError, match=next(iter(option)).replace("nan", "finite")):
            MultiLevelRankingLoss(temperature=0.3, **option)(Q * torch.nan, C, LEVELS)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["temperature", "logit_scale"])
def test_learnable_scale(form: str, backend: Any) -> None:
    start = {"temperature": 0.3, "logit_scale": 5.0}[form]
    scale = nn.Parameter(torch.tensor(start))
    module = MultiLevelRankingLoss(**{form: scale}, backend=backend)  # type: ignore[arg-type]
    assert dict(module.named_parameters()) == {form: scale}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    before = module(Q, C, LEVELS)
    before.backward()
    optimizer.step()
    assert float(scale.detach()) != start
    assert (module(Q, C, LEVELS) < before).item()


def test_a_number_is_no_parameter() -> None:
    assert not list(MultiLevelRankingLoss(temperature=0.1).parameters())


def test_scale_given_with_the_call() -> None:
    """It replaces the module's, whichever form that has."""
    for module in (
        MultiLevelRankingLoss(temperature=0.1),
        MultiLevelRankingLoss(logit_scale=3.0),
        MultiLevelRankingLoss(),
    ):
        for given in ({"temperature": 0.7}, {"logit_scale": torch.tensor(2.0)}):
            expected = multi_level_ranking_loss(Q, C, LEVELS, **given)  # type: ignore[arg-type]
            assert torch.equal(module(Q, C, LEVELS, **given), expected)
    with pytest.raises(ValueError, match="got both"):
        MultiLevelRankingLoss()(Q, C, LEVELS, temperature=0.1, logit_scale=10.0)


def test_state_copies_and_pickles() -> None:
    module = MultiLevelRankingLoss(
        logit_scale=nn.Parameter(torch.tensor(4.0)), level_weights=[0.5, 0.2, 1.0]
    )
    expected = module(Q, C, LEVELS)
    assert torch.equal(copy.deepcopy(module)(Q, C, LEVELS), expected)
    assert torch.equal(pickle.loads(pickle.dumps(module))(Q, C, LEVELS), expected)
    assert list(module.state_dict()) == ["logit_scale"]

    other = MultiLevelRankingLoss(
        logit_scale=nn.Parameter(torch.tensor(1.0)), level_weights=[0.5, 0.2, 1.0]
    )
    assert not torch.equal(other(Q, C, LEVELS), expected)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(Q, C, LEVELS), expected)


def test_a_copy_learns_by_itself() -> None:
    module = MultiLevelRankingLoss(logit_scale=nn.Parameter(torch.tensor(4.0)))
    twin = copy.deepcopy(module)
    twin(Q, C, LEVELS).backward()
    assert isinstance(module.logit_scale, nn.Parameter)
    assert isinstance(twin.logit_scale, nn.Parameter)
    assert module.logit_scale.grad is None
    assert twin.logit_scale.grad is not None


def test_double_precision_moves_the_parameter() -> None:
    module = MultiLevelRankingLoss(temperature=nn.Parameter(torch.tensor(0.3))).double()
    loss = module(Q.double(), C.double(), LEVELS)
    loss.backward()
    assert loss.dtype == torch.float64
    assert isinstance(module.temperature, nn.Parameter)
    assert module.temperature.grad is not None
    assert module.temperature.grad.dtype == torch.float64


def test_repr_names_what_was_chosen() -> None:
    text = repr(MultiLevelRankingLoss(temperature=0.05, positives="at_least", reduction="sum"))
    for part in ("temperature=0.05", "positives='at_least'", "reduction='sum'"):
        assert part in text
    assert "logit_scale=9.0" in repr(MultiLevelRankingLoss(logit_scale=9.0))
