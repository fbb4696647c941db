"""What is ranked against what: queries, candidates, and how relevant they are to each other."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..data import emoji, icd10
from ..levels import GrainKeys, LevelSource

#: Splits of each built-in data set, the default first.
DATA_SETS = {
    "icd10": ("test_seen", "test_unseen", "validation_seen", "validation_unseen"),
    "emoji": ("keywords", *emoji.LANGUAGES, *emoji.STYLES),
}
_WHITE = 255


class Task(NamedTuple):
    """N queries and M candidates."""

    title: str
    query_ids: tuple[str, ...]
    candidate_ids: tuple[str, ...]
    levels: LevelSource
    level_names: tuple[str, ...] | None
    query_texts: tuple[str, ...] = ()  #: none where the task came from files
    candidate_texts: tuple[str, ...] = ()  #: none where the candidates are pictures
    candidate_pictures: np.ndarray[Any, Any] | None = None  #: uint8 `[M, 32, 32, 3]`


def built_in_task(data: str, split: str | None = None) -> Task:
    """A built-in data set as a retrieval task.

    `"icd10"`: a synonym used in medical coding to the description of its code, without the queries
    that nearly are a training query; needs the extra `[text]`. `"emoji"`: a keyword, or a name in
    another language, to the English name; or, with a drawing style as the split, the English name
    to the picture. Texts that are the English name itself are left out.

    Args:
        data: `"icd10"` or `"emoji"`.
        split: one of `DATA_SETS[data]`; None: its first.

    Raises:
        ValueError: another data set or split.
        ModuleNotFoundError, RuntimeError: as `grainrank.data.icd10.load`; pictures need pillow.

    Example:
        >>> from grainrank.evaluation import built_in_task
        >>> task = built_in_task("emoji", "de")
        >>> task.query_texts[0], task.candidate_texts[0], task.level_names
        ('grinsendes Gesicht', 'grinning face', ('group', 'subgroup', 'emoji'))
    """
    if data not in DATA_SETS:
        raise ValueError(f"data must be one of {', '.join(DATA_SETS)}, got {data!r}")
    splits = DATA_SETS[data]
    chosen = splits[0] if split is None else split
    if chosen not in splits:
        raise ValueError(f"split must be one of {', '.join(splits)} for {data}, got {chosen!r}")
    return _icd10(chosen) if data == "icd10" else _emoji(chosen)


def _icd10(split: str) -> Task:
    data = icd10.load()
    queries = data.queries[split].without_near_duplicates()
    return Task(
        f"ICD-10-CM, {split}, near-duplicates of training queries left out",
        _numbers(len(queries)),
        data.codes,
        GrainKeys(data.grains[queries.targets], data.grains),
        data.grain_names,
        queries.texts,
        data.candidates,
    )


def _emoji(split: str) -> Task:
    data = emoji.load()
    pictures = None
    if split in emoji.STYLES:
        title = f"emoji, English name to picture ({split})"
        pairs = tuple((name, i) for i, name in enumerate(data.names))
        pictures = _on_white(emoji.pictures(split))
    elif split == "keywords":
        title = "emoji, English keyword to name"
        pairs = data.distinct_keywords()
    else:
        title = f"emoji, name ({split}) to English name"
        both = zip(data.translations[split], data.names, strict=True)
        pairs = tuple((x, i) for i, (x, name) in enumerate(both) if x.lower() != name.lower())
    targets = [target for _, target in pairs]
    return Task(
        title,
        _numbers(len(pairs)),
        data.codes,
        GrainKeys(data.grains[targets], data.grains),
        data.grain_names,
        tuple(text for text, _ in pairs),
        data.names if pictures is None else (),
        pictures,
    )


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _on_white(pictures: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Red, green and blue of pictures with alpha, uint8 `[..., 3]`."""
    opaque = pictures[..., 3:].astype(np.float32) / 255
    mixed = pictures[..., :3] * opaque + _WHITE * (1 - opaque)
    whole: np.ndarray[Any, Any] = np.rint(mixed).astype(np.uint8)
    return whole
