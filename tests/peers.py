"""The public libraries' own losses, called on embeddings."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn


def sentence_transformers() -> Any:
    pytest.importorskip(
        "sentence_transformers", reason="needs pip install '.[peers]'", exc_type=ImportError
    )
    from sentence_transformers.sentence_transformer import losses

    return losses


def metric_learning() -> Any:
    pytest.importorskip("pytorch_metric_learning", reason="needs pip install '.[peers]'")
    from pytorch_metric_learning import losses

    return losses


@cache
def open_clip_losses() -> ModuleType:
    """`open_clip/loss.py` by itself: the package wants torchvision, which the loss does not use."""
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        pytest.skip("needs pip install --no-deps open_clip_torch")
    path = Path(found.origin).with_name("loss.py")
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Encoder(nn.Module):
    """Stands where a loss of sentence-transformers wants its model: a feature is the embedding."""

    max_seq_length = 8

    def __init__(self, name: str = "embedding") -> None:
        super().__init__()
        self.name = name

    @property
    def tokenizer(self) -> Any:
        return _tokenizer()

    def get_embedding_dimension(self) -> None:
        """Not known."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features[self.name]}


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=words)


def features(*embeddings: Tensor, guide: tuple[Tensor, ...] = ()) -> list[dict[str, Tensor]]:
    columns = [{"embedding": e} for e in embeddings]
    for column, g in zip(columns, guide, strict=False):
        column["guide"] = g
    return columns


LABELS = torch.empty(0)
