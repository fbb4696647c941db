"""The text encoder: a bag of hashed n-grams and a small residual MLP."""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn

from .text import BUCKETS, Bags

GLOBAL_RANDOM_STATE = threading.Lock()  # runs that train side by side share it


class Encoder(nn.Module):
    """One encoder for queries and candidates. Embeddings are not normalised: the loss does it."""

    def __init__(self, dim: int = 128, hidden: int = 256) -> None:
        super().__init__()
        self.ngrams = nn.EmbeddingBag(BUCKETS, dim, mode="mean", include_last_offset=True)
        # Small, so that n-grams that training never met do not drown those that it did.
        nn.init.normal_(self.ngrams.weight, std=0.01)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)
        )

    def forward(self, bags: Bags) -> Tensor:
        """`[n, dim]` for `n` texts."""
        x: Tensor = self.ngrams(bags.ids, bags.offsets)  # [n, dim]
        return x + self.mlp(x)  # type: ignore[no-any-return]


def make_encoder(seed: int) -> Encoder:
    """The same initial weights for every loss; the global random state stays as it was."""
    with GLOBAL_RANDOM_STATE, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder()
