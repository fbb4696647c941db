"""Emoji: names and keywords in nine languages, and pictures in three drawing styles.

1,586 emoji (without flags and components), three grains, coarse to fine: group (8) > subgroup (94)
> emoji. Sources and their licences: `emoji_files/LICENCES` beside this module.
"""

from __future__ import annotations

import hashlib
import io
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
# A sheet can be damaged and still be a picture.
_SHA256 = {
    "emoji.jsonl": "9092989d8fefe3fed9c034ae20a36fea8a29b95d1eda9fa1f9773ec41dfe0670",
    "sheet_noto.png": "5589dfc39757ca0bcb0b54762f90a76fec0b43f7e3df410e74e25f7d6924d000",
    "sheet_twemoji.png": "b829be8f2d4a7184e757483bccc8b567e1fe446cbf1bbdcdea2bad0fc13e9f2e",
    "sheet_fluent.png": "a05b98083fba59af82eb355c110704f11b14b45d40c2017d686395859146c43c",
}
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

    Raises:
        RuntimeError: the file is damaged or cannot be read.

    Example:
        >>> data = load()
        >>> len(data), data.names[0], data.translations["fr"][0]
        (1586, 'grinning face', 'visage rieur')
        >>> data.groups[0], data.subgroups[0], data.grains[0].tolist()
        ('smileys-emotion', 'face-smiling', [0, 0, 0])
    """
    lines = _read("emoji.jsonl").splitlines()
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
        RuntimeError: the file is damaged or cannot be read.

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
    with Image.open(io.BytesIO(_read(f"sheet_{style}.png"))) as file:
        sheet: np.ndarray[Any, np.dtype[np.uint8]] = np.array(
            file.convert("RGBA")
        )  # [rows * 32, 42 * 32, 4]
    tiles = sheet.reshape(-1, SIZE, _PER_ROW, SIZE, 4).swapaxes(1, 2).reshape(-1, SIZE, SIZE, 4)
    found: np.ndarray[Any, np.dtype[np.uint8]] = tiles[:_COUNT]  # the last row is not full
    return found


def _read(name: str) -> bytes:
    path = _FOLDER / name
    mend = "it is part of grainrank: install that anew"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RuntimeError(f"{path} cannot be read ({error.strerror}); {mend}") from error
    if name.endswith(".jsonl"):
        content = content.replace(b"\r\n", b"\n")  # of a checkout on Windows
    found = hashlib.sha256(content).hexdigest()
    if found != _SHA256[name]:
        raise RuntimeError(
            f"{path} is damaged: sha256 must be {_SHA256[name]}, got {found}; {mend}"
        )
    return content


def _numbered(names: tuple[str, ...]) -> list[int]:
    """The index of each name, in the order of their first occurrence."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]
