"""Tiny models with random weights; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import offline, save_bert

transformers = pytest.importorskip("transformers", reason="needs pip install '.[st]'")

TOPICS = (
    ("animal", "cat", "small cat"),
    ("animal", "cat", "wild cat"),
    ("animal", "dog", "old dog"),
    ("animal", "dog", "guide dog"),
    ("thing", "car", "red car"),
    ("thing", "car", "race car"),
    ("thing", "boat", "sail boat"),
    ("thing", "boat", "row boat"),
)
#: A path of each topic, coarse to fine, `[8, 3]`.
GRAINS = tuple((i // 4, i // 2, i) for i in range(len(TOPICS)))


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No hub, no bars, no talk."""
    with offline(monkeypatch):
        yield


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder; its dropout is the library's 0.1."""
    folder = tmp_path_factory.mktemp("bert")
    save_bert(folder)
    return folder
