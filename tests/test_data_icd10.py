"""The ICD-10-CM data set: what the splits promise, and the cache."""

import logging
import re
import sys
from collections import Counter
from importlib import metadata

import pytest
import torch

from grainrank.data import icd10

pytest.importorskip("simple_icd_10_cm", reason="needs the extra [text]")

HELD_OUT = ("validation_seen", "validation_unseen", "test_seen", "test_unseen")


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("icd10")
    icd10.load(folder)
    return folder


@pytest.fixture(scope="session")
def data(cache):
    return icd10.load(cache)


def normalised(split):
    return [icd10.normalise(text) for text in split.texts]


def test_counts_are_the_published_ones(data):
    assert len(data.candidates) == len(data.codes) == len(set(data.codes)) == 6359
    assert (data.grains.max(dim=0).values + 1).tolist() == [22, 271, 1416, 6359]
    assert data.grain_names == ("chapter", "block", "category", "code")
    assert {name: len(split) for name, split in data.queries.items()} == {
        "train": 8971,
        "validation_seen": 231,
        "validation_unseen": 607,
        "test_seen": 922,
        "test_unseen": 1153,
    }


def test_grains_are_nested_and_follow_the_codes(data):
    for finer in range(1, 4):
        parents = {}
        for row in data.grains.tolist():
            assert parents.setdefault(row[finer], row[:finer]) == row[:finer]
    of_category = dict(zip(data.grains[:, 2].tolist(), data.codes, strict=True))
    for code, category in zip(data.codes, data.grains[:, 2].tolist(), strict=True):
        assert code[:3] == of_category[category][:3]
    assert data.grains[:, 3].tolist() == list(range(6359))


def test_terms_are_clean(data):
    descriptions = {icd10.normalise(text) for text in data.candidates}
    for split in data.queries.values():
        for text, words in zip(split.texts, normalised(split), strict=True):
            assert re.fullmatch(r"[a-z0-9]+( [a-z0-9]+)*", words)
            assert len(words) >= 4
            assert "nos" not in words.split()
            assert words not in descriptions
            assert not text.lower().startswith(("conditions in", "this category", "these codes"))


def test_no_term_occurs_twice_whatever_the_split(data):
    terms = Counter(words for split in data.queries.values() for words in normalised(split))
    assert set(terms.values()) == {1}


def test_unseen_codes_never_occur_in_training_and_seen_ones_do(data):
    codes = {name: set(split.targets.tolist()) for name, split in data.queries.items()}
    for name in ("validation", "test"):
        assert not codes[f"{name}_unseen"] & codes["train"]
        assert codes[f"{name}_seen"] <= codes["train"]
    assert not codes["validation_unseen"] & codes["test_unseen"]
    assert not codes["validation_seen"] & codes["test_seen"]
    assert len(codes["test_unseen"]) == round(0.1 * 6359)


def test_near_duplicates_are_those_of_the_definition(data):
    training = [frozenset(words.split()) for words in normalised(data.queries["train"])]
    split = data.queries["validation_seen"]
    found = split.near_duplicate.tolist()
    for words, flag in list(zip(normalised(split), found, strict=True))[:60]:
        mine = frozenset(words.split())
        assert flag == any(len(mine & other) / len(mine | other) >= 0.8 for other in training)
    dropped = {name: int(data.queries[name].near_duplicate.sum()) for name in HELD_OUT}
    assert dropped == {
        "validation_seen": 27,
        "validation_unseen": 39,
        "test_seen": 104,
        "test_unseen": 102,
    }
    assert len(split.without_near_duplicates()) == 231 - 27


def test_the_cache_gives_the_same_data_as_the_build(cache, data, monkeypatch):
    path = next(cache.iterdir())
    assert path.read_bytes() == icd10._encode(icd10.build())
    monkeypatch.setattr(icd10, "build", lambda: pytest.fail("the cache was not used"))
    again = icd10.load(cache)
    assert again.candidates == data.candidates
    assert torch.equal(again.grains, data.grains)
    for name, split in data.queries.items():
        assert again.queries[name].texts == split.texts
        assert torch.equal(again.queries[name].targets, split.targets)


@pytest.mark.parametrize("damage", ["one byte", "cut", "empty"])
def test_a_corrupt_cache_is_built_anew_and_said_so_in_one_line(
    damage, cache, tmp_path, monkeypatch, caplog
):
    sound = next(cache.iterdir())
    content = sound.read_bytes()
    monkeypatch.setattr(icd10, "build", lambda: icd10.json.loads(content))
    path = tmp_path / sound.name
    broken = {"one byte": b"[" + content[1:], "cut": content[:-9], "empty": b""}[damage]
    path.write_bytes(broken)
    with caplog.at_level(logging.INFO, logger="grainrank"):
        icd10.load(tmp_path)
    assert [record.message for record in caplog.records] == [
        f"{path} is corrupt or of another version: building it anew"
    ]
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == [sound.name]


def test_other_pairs_than_the_pinned_ones_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(icd10, "build", lambda: {"codes": []})
    with pytest.raises(RuntimeError, match=f"sha256 must be {icd10.PAIRS_SHA256}"):
        icd10.load(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_cache_is_in_the_users_cache_folder(cache, tmp_path, monkeypatch):
    content = next(cache.iterdir()).read_bytes()
    monkeypatch.setattr(icd10, "build", lambda: icd10.json.loads(content))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    icd10.load()
    assert [file.name for file in (tmp_path / "xdg" / "grainrank").iterdir()] == [
        "icd10cm-1.5.0.json"
    ]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    icd10.load()
    assert (tmp_path / "home" / ".cache" / "grainrank" / "icd10cm-1.5.0.json").exists()


def test_a_cache_folder_that_cannot_be_written_is_no_error(cache, tmp_path, monkeypatch, caplog):
    content = next(cache.iterdir()).read_bytes()
    monkeypatch.setattr(icd10, "build", lambda: icd10.json.loads(content))
    (tmp_path / "file").write_text("in the way")
    assert len(icd10.load(tmp_path / "file" / "folder").codes) == 6359
    assert len(caplog.records) == 1


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "simple_icd_10_cm", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("pip install 'grainrank[text]'")):
        icd10.load(tmp_path)


def test_another_version_of_the_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "1.4.0")
    with pytest.raises(RuntimeError, match=re.escape("got 1.4.0: pip install 'grainrank[text]'")):
        icd10.load(tmp_path)
