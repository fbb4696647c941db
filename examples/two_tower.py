"""A two-tower retriever on synthetic labelled items, trained with the multi-level ranking loss.

Run: python examples/two_tower.py
"""

from __future__ import annotations

import torch
from torch import nn

from grainrank import GrainKeys, multi_level_ranking_loss


class TwoTower(nn.Module):
    """Two linear encoders and a learnable scale, kept as its logarithm as CLIP does."""

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.query_encoder = nn.Linear(features, dim)
        self.candidate_encoder = nn.Linear(features, dim)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())


def train(steps: int = 60, batch: int = 256) -> list[float]:
    """The loss of each step."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(10, 32, generator=generator)  # coarse grain
    items = classes.repeat_interleave(20, 0) + torch.randn(200, 32, generator=generator)
    torch.manual_seed(0)
    model = TwoTower(features=32, dim=16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        item = torch.randint(0, 200, (batch,), generator=generator)
        grains = torch.stack([item // 20, item], dim=1)  # [N, K], coarse to fine
        noise = torch.randn(2, batch, 32, generator=generator)
        queries = model.query_encoder(items[item] + noise[0])
        candidates = model.candidate_encoder(items[item] + noise[1])
        loss, stats = multi_level_ranking_loss(
            queries,
            candidates,
            GrainKeys(grains, grains),
            logit_scale=model.log_scale.exp(),
            return_stats=True,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    similarity = ", ".join(f"level {k}: {x:.2f}" for k, x in enumerate(stats.level_similarity))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; mean similarity by {similarity}")
    return losses


if __name__ == "__main__":
    train()
