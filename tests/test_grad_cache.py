"""Cached gradients equal those of the plain step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grainrank import GrainKeys, multi_level_ranking_loss
from grainrank.grad_cache import cached_loss

N = 11


class Towers(nn.Module):
    """Two encoders with dropout, the second also frozen, and a scale."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.Linear(6, 8), nn.Dropout(dropout), nn.GELU(), nn.Linear(8, 5))
        self.candidate = nn.Linear(6, 5)
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.query(batch["query"]), self.candidate(batch["candidate"])


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, c = torch.randn(2, N, 6, generator=generator, dtype=torch.float64)
    return {"query": q, "candidate": c}


def towers(dropout: float = 0.0) -> Towers:
    torch.manual_seed(0)
    return Towers(dropout).double()


def loss_of(model: Towers) -> Any:
    keys = torch.stack([torch.arange(N) // 4, torch.arange(N) // 2], dim=1)

    def loss(q: Tensor, c: Tensor) -> Tensor:
        return multi_level_ranking_loss(
            q, c, GrainKeys(keys, keys), logit_scale=model.log_scale.exp(), direction="symmetric"
        )

    return loss


def parts(batch: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    return [{key: value[a : a + size] for key, value in batch.items()} for a in range(0, N, size)]


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {
        name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("size", [1, 4, N, 100])
@pytest.mark.parametrize("frozen", [False, True])
def test_loss_and_all_gradients_are_the_plain_ones(batch, size, frozen):
    """The learned scale's too; an upstream factor reaches all of them; gradients accumulate."""
    model = towers()
    model.candidate.requires_grad_(not frozen)
    plain = loss_of(model)(*model(batch))
    (3 * plain).backward()
    (3 * loss_of(model)(*model(batch))).backward()
    expected = gradients(model)
    model.zero_grad()
    for _ in range(2):
        total = cached_loss(model, parts(batch, size), loss_of(model))
        torch.testing.assert_close(total, plain)
        (3 * total).backward()
    assert expected["log_scale"] is not None
    assert (expected["candidate.weight"] is None) == frozen
    torch.testing.assert_close(gradients(model), expected, rtol=1e-9, atol=1e-12)


def test_the_second_pass_repeats_the_dropout_of_the_first(batch):
    """Also where another pass comes in between, and the random state goes on as after one pass."""
    model = towers(dropout=0.5)
    seen: list[Tensor] = []
    model.query[1].register_forward_hook(lambda module, given, out: seen.append(out.detach()))
    torch.manual_seed(1)
    total = cached_loss(model, parts(batch, 4), loss_of(model))
    after = torch.get_rng_state()
    torch.rand(7)
    between = torch.get_rng_state()
    total.backward()
    assert torch.equal(torch.get_rng_state(), between)
    assert not torch.equal(after, between)
    assert len(seen) == 6
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(seen[0], seen[1])


def test_activations_of_one_mini_batch_live_at_a_time(batch):
    """What autograd saves in the forward pass is of the loss alone; then of one mini-batch."""
    model = towers()
    rows: list[int] = []

    def saved(tensor: Tensor) -> Tensor:
        rows.append(tensor.shape[0] if tensor.dim() == 2 and tensor.shape[1] in (6, 8) else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        total = cached_loss(model, parts(batch, 4), loss_of(model))
        assert max(rows, default=0) == 0
        total.backward()
    assert max(row for row in rows if row not in (5, 8)) <= 4  # weights have 5 and 8 rows


def test_without_gradients_it_is_the_plain_loss(batch):
    model = towers()
    with torch.no_grad():
        total = cached_loss(model, parts(batch, 4), loss_of(model))
        torch.testing.assert_close(total, loss_of(model)(*model(batch)))
    assert not total.requires_grad


def test_errors_name_the_mend(batch):
    model = towers()
    with pytest.raises(ValueError, match="one mini-batch or more"):
        cached_loss(model, [], loss_of(model))
    with pytest.raises(ValueError, match='use reduction="mean"'):
        cached_loss(model, parts(batch, 4), lambda q, c: (q * c).sum(1))
