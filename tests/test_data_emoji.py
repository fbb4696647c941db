"""The emoji: what the data and its tasks promise, and that it is part of the package."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import grainrank
from grainrank.data import emoji
from grainrank.evaluation import built_in_task


@pytest.fixture(scope="module")
def data() -> emoji.Emoji:
    return emoji.load()


def test_counts_and_grains_are_the_published_ones(data: emoji.Emoji) -> None:
    assert len(data) == len(set(data.names)) == len(set(data.codes)) == 1586
    assert (data.grains.max(dim=0).values + 1).tolist() == [8, 94, 1586]
    assert data.grain_names == ("group", "subgroup", "emoji")
    parents: dict[int, int] = {}
    for group, subgroup, _ in data.grains.tolist():
        assert parents.setdefault(subgroup, group) == group
    for names, column in ((data.groups, 0), (data.subgroups, 1)):
        pairs = set(zip(names, data.grains[:, column].tolist(), strict=True))
        assert len(pairs) == len(set(names))


def test_fields_describe_the_same_item(data: emoji.Emoji) -> None:
    i = data.names.index("waving hand")
    assert (data.characters[i], data.codes[i]) == ("\N{WAVING HAND SIGN}", "1F44B")
    assert (data.groups[i], data.subgroups[i]) == ("people-body", "hand-fingers-open")
    assert data.translations["de"][i] == "winkende Hand"
    assert "wave" in data.tags[i] + data.keywords[i] + data.short_codes[i]
    for per_item in (*data.translations.values(), *data.translated_tags.values()):
        assert len(per_item) == len(data)
    for character, code in zip(data.characters, data.codes, strict=True):
        bare = character.replace("\N{VARIATION SELECTOR-16}", "")
        assert bare == "".join(chr(int(x, 16)) for x in code.split("-") if x != "FE0F")


def test_pictures_are_those_of_the_items(data: emoji.Emoji) -> None:
    """Coloured hearts, at the middle."""
    colours = {"red heart": (1, 0, 0), "green heart": (0, 1, 0), "blue heart": (0, 0, 1)}
    for style in emoji.STYLES:
        drawn = emoji.pictures(style)
        assert (drawn.shape, drawn.dtype) == ((1586, 32, 32, 4), np.uint8)
        assert (drawn[..., 3] > 0).any(axis=(1, 2)).all()  # none is empty
        for name, colour in colours.items():
            red, green, blue, alpha = drawn[data.names.index(name), 16, 16].tolist()
            assert alpha > 240
            assert np.argmax((red, green, blue)) == np.argmax(colour)


def test_the_files_are_in_the_package_with_their_licences() -> None:
    folder = Path(grainrank.data.emoji.__file__).parent / "emoji_files"
    texts = (folder / "LICENCES").read_text(encoding="utf-8")
    for needed in ("emojibase-data 17.0.0", "emojilib 4.0.3", "noto 1.2.9", "twemoji 1.2.5",
                   "fluent-emoji-flat 1.2.6", "CC-BY 4.0", "UNICODE LICENSE V3"):  # fmt: skip
        assert needed in texts
    names = {path.name for path in folder.iterdir()}
    assert names == {"LICENCES", "emoji.jsonl", *(f"sheet_{x}.png" for x in emoji.STYLES)}
    digest = hashlib.sha256((folder / "emoji.jsonl").read_bytes()).hexdigest()
    assert digest.startswith("9092989d8fefe3fe")


def test_keywords_name_one_emoji(data: emoji.Emoji) -> None:
    task = built_in_task("emoji")
    labels = {name.lower() for name in data.names}
    targets = task.levels.block(0, len(task.query_texts), len(data)).argmax(dim=1).tolist()
    assert len(set(task.query_texts)) == len(task.query_texts) == 2874
    of_items = [
        {word.lower() for both in words for word in both}
        for words in zip(data.tags, data.keywords, strict=True)
    ]
    for text, target in zip(task.query_texts, targets, strict=True):
        assert [i for i, words in enumerate(of_items) if text in words] == [target]
        assert text not in labels


def test_names_in_another_language(data: emoji.Emoji) -> None:
    task = built_in_task("emoji", "fr")
    targets = task.levels.block(0, len(task.query_texts), len(data)).argmax(dim=1).tolist()
    asked = dict(zip(targets, task.query_texts, strict=True))
    assert len(asked) == len(task.query_texts) < len(data)
    for i, (french, english) in enumerate(zip(data.translations["fr"], data.names, strict=True)):
        assert asked.get(i, english).lower() == french.lower()
    assert task.candidate_texts == data.names
    assert task.candidate_ids == data.codes


def test_names_to_pictures(data: emoji.Emoji) -> None:
    task = built_in_task("emoji", "fluent")
    drawn = task.candidate_pictures
    assert drawn is not None
    assert (drawn.shape, drawn.dtype) == ((1586, 32, 32, 3), np.uint8)
    with_alpha = emoji.pictures("fluent")
    clear, solid = with_alpha[..., 3] == 0, with_alpha[..., 3] == 255
    assert (drawn[clear] == 255).all()
    assert np.array_equal(drawn[solid], with_alpha[solid][:, :3])
    assert task.query_texts == data.names
    assert torch.equal(
        task.levels.block(0, len(data), len(data)) == 3, torch.eye(len(data), dtype=torch.bool)
    )


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"style must be one of 'noto', .*got 'apple'"):
        emoji.pictures("apple")
    with pytest.raises(ValueError, match="data must be one of icd10, emoji, got 'cats'"):
        built_in_task("cats")
    with pytest.raises(ValueError, match=r"split must be one of keywords, de.*for emoji, got 'zh'"):
        built_in_task("emoji", "zh")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match=r"need pillow: pip install 'grainrank\[eval\]'"):
        emoji.pictures("noto")
