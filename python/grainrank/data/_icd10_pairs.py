"""Builds and splits the ICD-10-CM pairs from the tables of `simple-icd-10-cm`."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

PACKAGE, PACKAGE_VERSION = "simple-icd-10-cm", "1.5.0"
GRAINS = ("chapter", "block", "category", "code")
SPLITS = ("train", "validation_seen", "validation_unseen", "test_seen", "test_unseen")
#: Fixed once: a training seed never changes the split.
SPLIT_SEED = 0

# Terms that point to other codes or explain the code's use, instead of naming it.
_POINTER = re.compile(r"^(conditions in|this category|these codes)\b|\bconditions? listed\b")


def normalise(text: str) -> str:
    """Lower-case words and digits; NOS ("not otherwise specified") says nothing and is dropped."""
    return " ".join(w for w in re.findall(r"[a-z0-9]+", text.lower()) if w != "nos")


def build() -> dict[str, Any]:
    """Candidates, their grains and the splits, as plain lists."""
    terms = _terms(_import_package())
    codes = [entry.code for entry in terms]
    ids: list[dict[str, int]] = [{} for _ in GRAINS]
    grains = [
        [column.setdefault(name, len(column)) for column, name in zip(ids, e.path, strict=True)]
        for e in terms
    ]
    splits = _split({entry.code: entry.terms for entry in terms})
    training_words = [frozenset(normalise(text).split()) for text, _ in splits["train"]]
    index = {code: i for i, code in enumerate(codes)}
    return {
        "codes": codes,
        "candidates": [entry.description for entry in terms],
        "grains": grains,
        "queries": {
            name: {
                "texts": [text for text, _ in pairs],
                "targets": [index[code] for _, code in pairs],
                "near_duplicate": [False] * len(pairs)
                if name == "train"
                else _near_duplicates([text for text, _ in pairs], training_words),
            }
            for name, pairs in splits.items()
        },
    }


def _import_package() -> Any:
    extra = "pip install 'grainrank[text]'"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # importlib.resources.read_text
            import simple_icd_10_cm  # type: ignore[import-untyped]
        version = metadata.version(PACKAGE)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"the ICD-10-CM data needs {PACKAGE}: {extra}") from error
    except Exception as error:  # it parses its tables while it is imported
        raise RuntimeError(
            f"the tables of {PACKAGE} cannot be read ({type(error).__name__}: {error}); reinstall "
            f"it with: pip install --force-reinstall {PACKAGE}=={PACKAGE_VERSION}"
        ) from error
    if version != PACKAGE_VERSION:
        raise RuntimeError(
            f"the ICD-10-CM data needs {PACKAGE}=={PACKAGE_VERSION} (each release changes codes), "
            f"got {version}: {extra}"
        )
    return simple_icd_10_cm


@dataclass(frozen=True)
class _Entry:
    code: str
    description: str
    path: tuple[str, str, str, str]
    terms: list[str]


def _terms(icd: Any) -> list[_Entry]:
    """Every candidate with its cleaned inclusion terms, in the order of the tables."""
    codes = [
        code
        for code in icd.get_all_codes()
        if icd.is_category_or_subcategory(code) and not icd.is_extended_subcategory(code)
    ]
    descriptions = {normalise(icd.get_description(code)) for code in codes}
    owners = defaultdict(set)
    for code in codes:
        for term in icd.get_inclusion_term(code):
            owners[normalise(term)].add(code)
    entries = []
    for code in dict.fromkeys(codes):
        kept: dict[str, str] = {}
        for term in icd.get_inclusion_term(code):
            words = normalise(term)
            named_once = len(owners[words]) == 1 and words not in descriptions
            if named_once and len(words) >= 4 and not _POINTER.search(term.lower()):
                kept.setdefault(words, term)
        if kept:
            chain = [code, *icd.get_ancestors(code)]
            path = (chain[-1], chain[-2], chain[-3], code)
            entries.append(_Entry(code, icd.get_description(code), path, list(kept.values())))
    return entries


def _shuffled(names: Iterable[str], purpose: str) -> list[str]:
    """A fixed random order that hangs on no library's random stream and on no other name."""

    def key(name: str) -> bytes:
        return hashlib.sha256(f"{SPLIT_SEED}:{purpose}:{name}".encode()).digest()

    return sorted(names, key=key)


def _split(terms: Mapping[str, list[str]]) -> dict[str, list[tuple[str, str]]]:
    """(term, code) pairs: 10% of the codes unseen test, 5% unseen validation; of the other codes
    with two or more terms, 40% give one term to the seen test and 10% to the seen validation.
    """
    order = _shuffled(terms, "unseen")
    test, both = round(0.1 * len(order)), round(0.15 * len(order))
    unseen = {"test_unseen": set(order[:test]), "validation_unseen": set(order[test:both])}
    several = _shuffled((c for c in order[both:] if len(terms[c]) > 1), "seen")
    test, both = round(0.4 * len(several)), round(0.5 * len(several))
    seen = {"test_seen": set(several[:test]), "validation_seen": set(several[test:both])}
    splits: dict[str, list[tuple[str, str]]] = {name: [] for name in SPLITS}
    for code, texts in terms.items():
        home = next((name for name, codes in unseen.items() if code in codes), "train")
        away = next((name for name, codes in seen.items() if code in codes), None)
        held_out = None
        if away is not None:
            held_out = _shuffled(texts, f"held out of {code}")[0]
            splits[away].append((held_out, code))
        splits[home] += [(text, code) for text in texts if text != held_out]
    return splits


def _near_duplicates(texts: list[str], training_words: list[frozenset[str]]) -> list[bool]:
    """Whether a training query shares at least 0.8 of the words of both (Jaccard index)."""
    holders = defaultdict(list)
    for i, words in enumerate(training_words):
        for word in words:
            holders[word].append(i)
    result = []
    for text in texts:
        words = frozenset(normalise(text).split())
        shared: defaultdict[int, int] = defaultdict(int)
        for word in words:
            for i in holders.get(word, ()):
                shared[i] += 1
        result.append(
            any(5 * n >= 4 * (len(words) + len(training_words[i]) - n) for i, n in shared.items())
        )
    return result
