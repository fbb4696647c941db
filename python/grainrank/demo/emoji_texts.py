"""Texts of emoji for a text tower: names, keywords and other languages, and a small tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.emoji import LANGUAGES, Emoji

if TYPE_CHECKING:
    import tokenizers

LENGTH = 12  # tokens of a text, the end included
VOCABULARY = 3000
PAD, UNKNOWN, BEGIN, END = range(4)
NAME_SHARE = 0.85  # of the draws: the English name, which the queries are
_DESCRIPTIONS, _WORDS = 4, 3  # of an emoji: texts of so many keywords each


@dataclass(frozen=True)
class Texts:
    """All texts of `n` emoji, one emoji after the other; its English name is its first text.

    ids: tokens, int64 `[sum of counts, LENGTH]`.
    starts, counts: first text of each emoji and how many it has, int64 `[n]`.
    """

    ids: Tensor
    starts: Tensor
    counts: Tensor

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Tokens `[len(rows), LENGTH]` of one text for each row: its name, or any of its texts."""
        named = torch.rand(len(rows), generator=generator) < NAME_SHARE
        places = torch.rand(len(rows), generator=generator) * self.counts[rows]
        return self.ids[self.starts[rows] + places.long().masked_fill(named, 0)]


def texts_of(data: Emoji, index: int, generator: torch.Generator) -> list[str]:
    """The English name, the names in other languages, and a few texts of random keywords."""
    words = list(dict.fromkeys([*data.tags[index], *data.keywords[index]]))
    texts = [data.names[index], *(data.translations[key][index] for key in LANGUAGES)]
    if words:
        for _ in range(_DESCRIPTIONS):
            drawn = torch.randperm(len(words), generator=generator)[:_WORDS].tolist()
            texts.append(" ".join(words[i].replace("_", " ") for i in drawn))
    return texts


def make_tokenizer(texts: Sequence[str]) -> tokenizers.Tokenizer:
    """Byte pairs of the lower-case words; the same texts give the same tokenizer."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[unknown]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["[pad]", "[unknown]", "[begin]", "[end]"],  # PAD ... END
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> Tensor:
    """Tokens, `END`, then `PAD`, int64 `[n, LENGTH]`; what is longer is cut."""
    ids = torch.full((len(texts), LENGTH), PAD)
    for row, encoded in zip(ids, tokenizer.encode_batch(list(texts)), strict=True):
        kept = [*encoded.ids[: LENGTH - 1], END]
        row[: len(kept)] = torch.tensor(kept)
    return ids
