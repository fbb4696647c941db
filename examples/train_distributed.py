"""A two-tower retriever on any number of processes and machines: the same losses on each number.

One machine:   torchrun --standalone --nproc-per-node 8 examples/train_distributed.py
Two machines:  torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d \
                   --rdzv-endpoint FIRST_MACHINE:29500 examples/train_distributed.py    (on both)
One process:   python examples/train_distributed.py
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from grainrank import GrainKeys, multi_level_ranking_loss


class TwoTower(nn.Module):
    """Two encoders and a learnable scale, kept as its logarithm as CLIP does.

    One module with one forward, which gives the scale too: DDP synchronises what is used in it.
    """

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.query_encoder = nn.Linear(features, dim)
        self.candidate_encoder = nn.Linear(features, dim)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def forward(self, queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        encoded = self.query_encoder(queries), self.candidate_encoder(candidates)
        return *encoded, self.log_scale.exp()


class Items:
    """Synthetic items of 10 classes; a step's batch is the same on any number of processes."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        classes = torch.randn(10, 32, generator=generator)
        self._items = classes.repeat_interleave(20, 0) + torch.randn(200, 32, generator=generator)

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and candidates `[size, 32]`, grains `[size, 2]`, coarse to fine."""
        generator = torch.Generator().manual_seed(1 + step)
        item = torch.randint(0, 200, (size,), generator=generator)
        noise = torch.randn(2, size, 32, generator=generator)
        grains = torch.stack([item // 20, item], dim=1)
        return self._items[item] + noise[0], self._items[item] + noise[1], grains


def train(steps: int, batch: int, transport: str, checkpoint: Path | None) -> list[float]:
    """The loss of each step; the same on every rank."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    torch.manual_seed(0)
    plain = TwoTower(features=32, dim=16).to(device)
    model = DistributedDataParallel(plain) if dist.is_initialized() else plain
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5, momentum=0.9)
    first, losses = 0, []
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device)
        plain.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first, losses = saved["step"], saved["losses"]
    items = Items()
    for step in range(first, steps):
        # This rank's part of the batch; with your own data, what a DistributedSampler gives.
        queries, candidates, grains = (x[rank::world].to(device) for x in items.batch(step, batch))
        q, c, scale = model(queries, candidates)
        loss = multi_level_ranking_loss(
            q,
            c,
            GrainKeys(grains, grains),
            logit_scale=scale,
            group=dist.group.WORLD,  # None in a single process
            transport=transport,  # type: ignore[arg-type]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if checkpoint is not None and rank == 0:
            state = {"model": plain.state_dict(), "optimizer": optimizer.state_dict()}
            part = checkpoint.with_suffix(".part")
            with part.open("wb") as file:
                torch.save({**state, "step": step + 1, "losses": losses}, file)
                file.flush()
                os.fsync(file.fileno())  # on the disk before it takes the old one's place
            part.replace(checkpoint)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=256, help="of all processes together")
    parser.add_argument("--transport", choices=("gather", "ring"), default="gather")
    parser.add_argument("--checkpoint", type=Path, help="written after each step, and resumed from")
    options = parser.parse_args()
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        losses = train(options.steps, options.batch, options.transport, options.checkpoint)
        if not dist.is_initialized() or dist.get_rank() == 0:
            world = dist.get_world_size() if dist.is_initialized() else 1
            print(f"processes: {world}, loss {losses[0]:.6f} -> {losses[-1]:.6f}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
