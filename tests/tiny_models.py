"""Models with random weights, in folders: nothing is downloaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

DIM = 16


@contextlib.contextmanager
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No hub, no bars and no warnings of transformers."""
    import transformers

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(before)


def save_bert(folder: Path, *, spread: float = 1.0, max_position_embeddings: int = 32) -> None:
    """A transformers folder; words are spelled letter by letter.

    `spread` multiplies the embeddings of the letters: of 1, all texts are much alike.
    """
    import transformers

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters)]
    tokenizer = transformers.BertTokenizerFast({word: i for i, word in enumerate(words)})
    torch.manual_seed(0)
    model = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=len(words),
            hidden_size=DIM,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=max_position_embeddings,
        )
    )
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.mul_(spread)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
