"""The data of elva.py, and the models that it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grainrank.data import emoji, icd10
from grainrank.demo.encoder import make_encoder
from grainrank.demo.text import Bags, hashed_ngrams

DIM = 128  # of an embedding


@dataclass(frozen=True)
class Pictures:
    """Float `[n, 3, 32, 32]`."""

    values: Tensor

    def select(self, rows: Tensor) -> Pictures:
        return Pictures(self.values[rows])


Inputs = Bags | Pictures


@dataclass(frozen=True)
class Split:
    queries: Inputs
    targets: Tensor  # int64 [n], rows of the candidates


@dataclass(frozen=True)
class Task:
    label: str
    candidates: Bags  # of M texts
    grains: Tensor  # int64 [M, K]
    splits: dict[str, tuple[Split, ...]]  # train, validation, and the tests


class PictureEncoder(nn.Sequential):
    """Three convolutions; random weights at first."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 32, 3, 2, 1), nn.GELU(), nn.Conv2d(32, 64, 3, 2, 1), nn.GELU()),
            *(nn.Conv2d(64, 128, 3, 2, 1), nn.GELU(), nn.Flatten(), nn.Linear(128 * 16, DIM)),
        )

    def forward(self, pictures: Pictures) -> Tensor:
        return super().forward(pictures.values)  # type: ignore[no-any-return]


class Model(nn.Module):
    """The demo's encoder of texts, for queries too unless these are pictures."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.of_texts = make_encoder(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.of_pictures = PictureEncoder()

    def forward(self, inputs: Inputs) -> Tensor:
        return self.of_texts(inputs) if isinstance(inputs, Bags) else self.of_pictures(inputs)


def icd10_task() -> Task:
    data = icd10.load()

    def split(name: str) -> Split:
        queries = data.queries[name].without_near_duplicates()
        return Split(hashed_ngrams(queries.texts), queries.targets)

    tests = {name: (split(name),) for name in ("test_seen", "test_unseen")}
    return Task(
        "ICD-10-CM, synonym to description",
        hashed_ngrams(data.candidates),
        data.grains,
        {
            "train": (split("train"),),
            "validation": (split("validation_seen"), split("validation_unseen")),
        }
        | tests,
    )


def emoji_text_task() -> Task:
    """The languages of validation and test are not those of training."""
    data = emoji.load()
    known = set(map(icd10.normalise, data.names))

    def split(languages: Sequence[str]) -> tuple[Split, ...]:
        pairs = [
            (text, i)
            for language in languages
            for i, text in enumerate(data.translations[language])
            if icd10.normalise(text) not in known
        ]
        texts, targets = zip(*pairs, strict=True)
        return (Split(hashed_ngrams(texts), torch.tensor(targets)),)

    training = ("de", "fr", "es", "nl", "sv", "pl")
    splits = {"train": split(training)}
    known |= {icd10.normalise(text) for name in training for text in data.translations[name]}
    splits |= {"validation": split(["it"]), "test": split(["pt"])}
    return Task(
        "emoji, name in another language to English name",
        hashed_ngrams(data.names),
        data.grains,
        splits,
    )


def emoji_pictures_task() -> Task:
    """The drawing style of validation and test is not one of training; each has half the emoji."""
    data = emoji.load()

    def split(styles: Sequence[str], rows: Tensor) -> tuple[Split, ...]:
        pixels = torch.cat(
            [torch.from_numpy(emoji.pictures(style).copy())[rows] for style in styles]
        )
        alpha = pixels[..., 3:].float() / 255
        values = (pixels[..., :3].float() / 255 * alpha + 1 - alpha).permute(0, 3, 1, 2) - 0.5
        return (Split(Pictures(values.contiguous()), rows.repeat(len(styles))),)

    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return Task(
        "emoji, picture to English name",
        hashed_ngrams(data.names),
        data.grains,
        {
            "train": split(("noto", "fluent"), torch.arange(len(data))),
            "validation": split(("twemoji",), order[::2]),
            "test": split(("twemoji",), order[1::2]),
        },
    )


#: How to make a task, and the epochs of its supervised start.
TASKS: dict[str, tuple[Callable[[], Task], int]] = {
    "icd10": (icd10_task, 10),
    "emoji_text": (emoji_text_task, 10),
    "emoji_pictures": (emoji_pictures_task, 20),
}
