"""The two-tower retriever of two_tower.py with Lightning, on one process or several.

Run: python examples/lightning_two_tower.py (needs pip install lightning)
"""

from __future__ import annotations

import lightning
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from grainrank import GrainKeys, MultiLevelRankingLoss
from grainrank.evaluation import evaluate_embeddings

NAMES = ("class", "item")  # of the grains, coarse to fine


class Retriever(lightning.LightningModule):
    """Two linear encoders and a learned temperature."""

    def __init__(self, features: int = 32, dim: int = 16) -> None:
        super().__init__()
        self.query_encoder = nn.Linear(features, dim)
        self.candidate_encoder = nn.Linear(features, dim)
        self.loss = MultiLevelRankingLoss(temperature=nn.Parameter(torch.tensor(0.1)))

    def forward(self, queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_encoder(queries), self.candidate_encoder(candidates)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        queries, candidates, grains = batch
        q, c = self(queries, candidates)
        # The batches of all processes are one: Lightning's DDP then averages to the true gradients.
        group = dist.group.WORLD if dist.is_initialized() else None
        loss: Tensor = self.loss(q, c, GrainKeys(grains, grains), group=group)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        queries, candidates, grains = batch
        report = evaluate_embeddings(
            *(x.detach().clone() for x in self(queries, candidates)),
            GrainKeys(grains, grains),
            level_names=NAMES,
        )
        self.log("ndcg", report.ndcg, batch_size=len(queries))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def pairs(count: int, seed: int) -> TensorDataset:
    """Two noisy views of some of 200 items, and their class and item."""
    items = torch.Generator().manual_seed(0)
    classes = torch.randn(10, 32, generator=items)
    looks = classes.repeat_interleave(20, 0) + torch.randn(200, 32, generator=items)
    generator = torch.Generator().manual_seed(seed)
    item = torch.randint(0, 200, (count,), generator=generator)
    noise = torch.randn(2, count, 32, generator=generator)
    grains = torch.stack([item // 20, item], dim=1)  # [N, K], coarse to fine
    return TensorDataset(looks[item] + noise[0], looks[item] + noise[1], grains)


def train(epochs: int = 5, **options: object) -> dict[str, float]:
    """The last loss, and the nDCG on new views."""
    lightning.seed_everything(0, verbose=False)
    trainer = lightning.Trainer(max_epochs=epochs, logger=False, **options)
    trainer.fit(
        Retriever(),
        DataLoader(pairs(4096, 1), batch_size=256, shuffle=True),
        DataLoader(pairs(512, 2), batch_size=512),
    )
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


if __name__ == "__main__":
    print(train())
