"""What every rank runs for test_adapters.py: a data-parallel model in an adapter's loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from grainrank import GrainKeys, MultiLevelRankingLoss
from grainrank.grad_cache import cached_loss

N, FEATURES, DIM = 12, 6, 5


class Encoder(nn.Module):
    """A model as sentence-transformers calls it."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(FEATURES, DIM, generator=generator).double())
        self.bias = nn.Parameter(torch.randn(DIM, generator=generator).double())

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        embedding = torch.tanh(features["input_ids"] @ self.weight) + self.bias
        return {**features, "sentence_embedding": embedding}


def batch() -> tuple[Tensor, Tensor]:
    """Columns of the whole batch `[2, N, FEATURES]`, and paths `[N, 2]`."""
    generator = torch.Generator().manual_seed(1)
    columns = torch.randn(2, N, FEATURES, generator=generator, dtype=torch.float64)
    index = torch.arange(N)
    return columns, torch.stack([index // 6, index // 2], dim=1)


def gradients(rank: int, world: int, way: str) -> dict[str, Any]:
    """The loss, and the gradients that data-parallel training ends with, of this rank's rows."""
    columns, paths = batch()
    rows = slice(rank * N // world, (rank + 1) * N // world)
    mine, labels = columns[:, rows], paths[rows]
    encoder = Encoder()
    model = encoder if world == 1 else DistributedDataParallel(encoder)
    if way == "grad_cache":
        group = dist.group.WORLD if world > 1 else None
        total = cached_loss(
            lambda part: [model({"input_ids": x})["sentence_embedding"] for x in part.unbind(1)],
            mine.transpose(0, 1).split(2),
            lambda q, c: MultiLevelRankingLoss(temperature=0.1)(
                q, c, GrainKeys(labels, labels), group=group
            ),
            module=model,
        )
    else:
        from grainrank.integrations import sentence_transformers as st

        options = {"gather_across_devices": True, "temperature": 0.1}
        if way == "cached":
            loss = st.CachedMultiLevelRankingLoss(model, mini_batch_size=2, **options)
        else:
            loss = st.MultiLevelRankingLoss(model, **options)
        total = loss([{"input_ids": x} for x in mine], labels)
    total.backward()
    found = {name: p.grad for name, p in encoder.named_parameters()}
    return {"loss": total.detach(), **found}


def learned_temperature(rank: int, world: int) -> str:
    """The error of a loss whose own parameter nobody reduces."""
    from grainrank.integrations import sentence_transformers as st

    temperature = nn.Parameter(torch.tensor(0.1))
    loss = st.MultiLevelRankingLoss(Encoder(), temperature=temperature)
    columns, paths = batch()
    try:
        loss([{"input_ids": x} for x in columns], paths)
    except ValueError as error:
        return str(error)
    return ""
