"""Emoji: names and keywords in nine languages, and pictures in three drawing styles.

1,586 emoji (without flags and components), three grains, coarse to fine: group (8) > subgroup (94)
> emoji. Sources and their licences: `emoji_files/LICENCES` beside this module.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["LANGUAGES", "SIZE", "STYLES", "Emoji", "load", "pictures"]

GRAINS = ("group", "subgroup", "emoji")
#: Beside English.
LANGUAGES = ("de", "fr", "es", "it", "pt", "nl", "sv", "pl")
STYLES = ("noto", "twemoji", "fluent")
#: Pixels of a picture, in both directions.
SIZE = 32

_FOLDER = Path(__file__).parent / "emoji_files"
_COUNT, _PER_ROW = 1586, 42  # pictures of a sheet


@dataclass(frozen=True)
class Emoji:
    """The data set; item i of every field is the same emoji.

    characters: the emoji themselves.
    codes: their code points, such as `1F44B` or `1F636-200D-1F32B-FE0F`.
    names: English names (Unicode CLDR).
    tags: English keywords of the CLDR.
    keywords: further English keywords (emojilib); some are the name.
    short_codes: names of several chat programs.
    translations: names by language (`LANGUAGES`).
    translated_tags: keywords by language.
    groups, subgroups: names of the coarser grains.
    grains: index of the group, of the subgroup and of the emoji, int64 `[1586, 3]`.
    grain_names: names of the columns of `grains`, coarse to fine.
    """

    characters: tuple[str, ...]
    codes: tuple[str, ...]
    names: tuple[str, ...]
    tags: tuple[tuple[str, ...], ...]
    keywords: tuple[tuple[str, ...], ...]
    short_codes: tuple[tuple[str, ...], ...]
    translations: Mapping[str, tuple[str, ...]]
    translated_tags: Mapping[str, tuple[tuple[str, ...], ...]]
    groups: tuple[str, ...]
    subgroups: tuple[str, ...]
    grains: Tensor
    grain_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def distinct_keywords(self) -> tuple[tuple[str, int], ...]:
        """Keywords (`tags` and `keywords`, lower case) that belong to one emoji alone and are no
        emoji's name, with that emoji's index; in its order.
        """
        named = {name.lower() for name in self.names}
        owners: dict[str, set[int]] = {}
        for i, both in enumerate(zip(self.tags, self.keywords, strict=True)):
            for word in (word for words in both for word in words):
                owners.setdefault(word.lower(), set()).add(i)
        return tuple(
            (word, min(of)) for word, of in owners.items() if len(of) == 1 and word not in named
        )


def load() -> Emoji:
    """The names, keywords and grains; part of the package, so nothing is downloaded.

    Example:
        >>> data = load()
        >>> len(data), data.names[0], data.translations["fr"][0]
        (1586, 'grinning face', 'visage rieur')
        >>> data.groups[0], data.subgroups[0], data.grains[0].tolist()
        ('smileys-emotion', 'face-smiling', [0, 0, 0])
    """
    with (_FOLDER / "emoji.jsonl").open(encoding="utf-8") as lines:
        items: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def texts(key: str) -> tuple[str, ...]:
        return tuple(item[key] for item in items)

    def lists(key: str) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(item[key]) for item in items)

    groups, subgroups = texts("group"), texts("subgroup")
    columns = (_numbered(groups), _numbered(subgroups), list(range(len(items))))
    return Emoji(
        characters=texts("char"),
        codes=texts("hex"),
        names=texts("label"),
        tags=lists("tags"),
        keywords=lists("lib"),
        short_codes=lists("short"),
        translations={key: tuple(x[key]["label"] for x in items) for key in LANGUAGES},
        translated_tags={key: tuple(tuple(x[key]["tags"]) for x in items) for key in LANGUAGES},
        groups=groups,
        subgroups=subgroups,
        grains=torch.tensor(columns, dtype=torch.int64).T.contiguous(),
        grain_names=GRAINS,
    )


def pictures(style: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pictures in one drawing style, uint8 `[1586, 32, 32, 4]`: red, green, blue and alpha.

    Args:
        style: one of `STYLES`.

    Raises:
        ValueError: another style.
        ModuleNotFoundError: pillow is missing.

    Example:
        >>> pictures("noto").shape
        (1586, 32, 32, 4)
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(map(repr, STYLES))}, got {style!r}")
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the emoji pictures need pillow: pip install 'grainrank[eval]'"
        ) from error
    with Image.open(_FOLDER / f"sheet_{style}.png") as file:
        sheet: np.ndarray[Any, np.dtype[np.uint8]] = np.array(
            file.convert("RGBA")
        )  # [rows * 32, 42 * 32, 4]
    tiles = sheet.reshape(-1, SIZE, _PER_ROW, SIZE, 4).swapaxes(1, 2).reshape(-1, SIZE, SIZE, 4)
    found: np.ndarray[Any, np.dtype[np.uint8]] = tiles[:_COUNT]  # the last row is not full
    return found


def _numbered(names: tuple[str, ...]) -> list[int]:
    """The index of each name, in the order of their first occurrence."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]
