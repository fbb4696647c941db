"""ICD-10-CM: from a synonym used in medical coding to the description of its code.

A candidate is the description of a category or subcategory code, a query is an inclusion term of
such a code. Four grains, coarse to fine: chapter > block > category > code. Built from the PyPI
package `simple-icd-10-cm` (MIT; the ICD-10-CM tables are in the US public domain), which is pinned
because every release of the tables changes codes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import write_atomically
from ._icd10_pairs import GRAINS, PACKAGE, PACKAGE_VERSION, build, normalise

__all__ = ["Icd10", "Queries", "load", "normalise"]

logger = logging.getLogger(__name__)

#: Of the cache file: the cleaned and split pairs as JSON, the same bytes on every machine.
PAIRS_SHA256 = "c0aba48e64fd56b8738a2d876def928c4c471e6fbc7d0ccb5b4308d29cf50eb4"


@dataclass(frozen=True)
class Queries:
    """Queries of one split; `n` of them.

    texts: inclusion terms as published.
    targets: index of the code's description among the candidates, int64 `[n]`.
    near_duplicate: whether the words of a training query overlap with the query's by a Jaccard
        index of 0.8 or more, bool `[n]`; all False for the training split itself.
    """

    texts: tuple[str, ...]
    targets: Tensor
    near_duplicate: Tensor

    def __len__(self) -> int:
        return len(self.texts)

    def without_near_duplicates(self) -> Queries:
        """The queries that are worth a published figure."""
        kept = (~self.near_duplicate).nonzero().flatten()
        texts = tuple(self.texts[i] for i in kept.tolist())
        return Queries(texts, self.targets[kept], self.near_duplicate[kept])


@dataclass(frozen=True)
class Icd10:
    """The data set; `M` candidates.

    codes: ICD-10-CM code of each candidate.
    candidates: its description, as published.
    grains: index of the candidate's chapter, block, category and code, int64 `[M, 4]`.
    grain_names: names of the columns of `grains`, coarse to fine.
    queries: the splits by name. Codes of the `unseen` ones never occur in training.
    """

    codes: tuple[str, ...]
    candidates: tuple[str, ...]
    grains: Tensor
    grain_names: tuple[str, ...]
    queries: Mapping[str, Queries]


def load(cache_dir: str | Path | None = None) -> Icd10:
    """The data set, from the cache when it is there, otherwise built (3 to 8 s) and cached.

    Args:
        cache_dir: folder of the cache; None: `grainrank` in the user's cache folder
            (`$XDG_CACHE_HOME`, or `~/.cache`).

    Raises:
        ModuleNotFoundError: nothing is cached and `simple-icd-10-cm` is not installed.
        RuntimeError: nothing is cached and another version of it is installed, its files cannot
            be read, or it gave other pairs than the pinned ones.

    Example:
        >>> data = load()  # doctest: +SKIP
        >>> data.queries["train"].texts[0], data.candidates[data.queries["train"].targets[0]]
        ... # doctest: +SKIP
        ('Classical cholera', 'Cholera due to Vibrio cholerae 01, biovar cholerae')
    """
    path = _cache_folder(cache_dir) / f"icd10cm-{PACKAGE_VERSION}.json"
    try:
        pairs = path.read_bytes()
        if _sha256(pairs) == PAIRS_SHA256:
            return _decode(pairs)
        logger.warning("%s is corrupt or of another version: building it anew", path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        logger.warning("%s cannot be read (%s): building it anew", path, error.strerror)
    pairs = _encode(build())
    if _sha256(pairs) != PAIRS_SHA256:
        raise RuntimeError(
            f"{PACKAGE} gave other pairs than the pinned ones: sha256 must be {PAIRS_SHA256}, "
            f"got {_sha256(pairs)}; reinstall it with: pip install --force-reinstall "
            f"{PACKAGE}=={PACKAGE_VERSION}"
        )
    try:
        write_atomically(path, pairs)
    except OSError as error:
        logger.warning("the pairs are not cached in %s: %s", path, error)
    return _decode(pairs)


def _cache_folder(cache_dir: str | Path | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "grainrank"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, indent=0).encode("ascii")


def _decode(pairs: bytes) -> Icd10:
    document = json.loads(pairs)
    return Icd10(
        codes=tuple(document["codes"]),
        candidates=tuple(document["candidates"]),
        grains=torch.tensor(document["grains"], dtype=torch.int64),
        grain_names=GRAINS,
        queries={
            name: Queries(
                texts=tuple(split["texts"]),
                targets=torch.tensor(split["targets"], dtype=torch.int64),
                near_duplicate=torch.tensor(split["near_duplicate"], dtype=torch.bool),
            )
            for name, split in document["queries"].items()
        },
    )
