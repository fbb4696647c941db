"""Levels from judgements and from grains in files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..levels import GrainKeys, SparseLevels
from ..validation import MAX_LEVEL
from .files import read_integers, read_lines

Keys = np.ndarray[Any, np.dtype[np.int64]]

_DELIMITERS = {".tsv": "\t", ".csv": ","}


def qrels_levels(
    path: Path, query_ids: Sequence[str], candidate_ids: Sequence[str]
) -> SparseLevels:
    """TREC judgements, `query 0 document grade`. A negative grade is not relevant, as to trec_eval.

    L is the highest grade of the file.
    """
    qrels: dict[tuple[str, str], int] = {}
    for number, line in enumerate(read_lines("--qrels", path), start=1):
        words = line.split()
        if not words:
            continue
        where = f"{line.strip()!r} in line {number} of {path}"
        if len(words) != 4:
            raise ValueError(f"--qrels must have four columns, query 0 document grade, got {where}")
        query, _, document, grade = words
        try:
            level = max(0, int(grade))
        except ValueError as error:
            raise ValueError(f"--qrels must have integer grades, got {where}") from error
        if level > MAX_LEVEL:
            raise ValueError(
                f"--qrels must have grades up to {MAX_LEVEL}, got {where}; map them to levels"
            )
        if (query, document) in qrels:
            raise ValueError(f"--qrels must judge a pair once, got a second judgement, {where}")
        qrels[query, document] = level
    known, documents = set(query_ids), set(candidate_ids)
    if not any(level > 0 and q in known and d in documents for (q, d), level in qrels.items()):
        raise ValueError(
            f"--qrels must call a candidate relevant to a query, got none in {path} whose ids are "
            f"both there (ids such as {query_ids[0]} and {candidate_ids[0]}); pass --query-ids and "
            f"--candidate-ids"
        )
    return SparseLevels.from_qrels(query_ids, candidate_ids, qrels, max(qrels.values()))


def grain_levels(
    queries: Path,
    candidates: Path,
    names: Sequence[str] | None,
    match: Literal["prefix", "count"],
    shape: tuple[int, int],
) -> tuple[GrainKeys, tuple[str, ...] | None]:
    """Keys, and the names of their grains; `shape`: N, M."""
    if queries.suffix != candidates.suffix:
        raise ValueError(
            f"--candidate-grains must be a file like --query-grains, {queries.suffix or queries}, "
            f"got {candidates}; write both in the same format"
        )
    if queries.suffix == ".npy":
        q = _integer_keys("--query-grains", queries)
        c = _integer_keys("--candidate-grains", candidates)
    elif queries.suffix in _DELIMITERS:
        header, q, c = _named_keys(queries, candidates)
        names = names or header
    else:
        raise ValueError(
            f"--query-grains must be .npy, .tsv or .csv, got {queries}; "
            f"save integers [N, K] with numpy.save, or a table whose header names the grains"
        )
    for option, keys, count, of in (
        ("--query-grains", q, shape[0], "queries"),
        ("--candidate-grains", c, shape[1], "candidates"),
    ):
        if len(keys) != count:
            below = "" if queries.suffix == ".npy" else " below its header, which names the grains"
            raise ValueError(
                f"{option} must have one row for each of the {count} {of}{below}, got {len(keys)}"
            )
    if q.shape[1] != c.shape[1]:
        raise ValueError(
            f"--candidate-grains must have the {q.shape[1]} grains of --query-grains, "
            f"got {c.shape[1]}; give both the same grains"
        )
    if names is not None and len(names) != q.shape[1]:
        raise ValueError(
            f"--grain-names must name the {q.shape[1]} grains, coarse to fine, got {len(names)}: "
            f"{','.join(names)}"
        )
    levels = GrainKeys(torch.from_numpy(q), torch.from_numpy(c), match)
    return levels, None if names is None else tuple(names)


def _integer_keys(option: str, path: Path) -> Keys:
    array = read_integers(option, path)
    if array.ndim != 2:
        raise ValueError(
            f"{option} must have shape [rows, K], one column for each grain, got {array.shape}"
        )
    return array


def _named_keys(queries: Path, candidates: Path) -> tuple[list[str], Keys, Keys]:
    """The header, and the groups of each column numbered over both files; nothing is -1."""
    header, q = _table("--query-grains", queries)
    other, c = _table("--candidate-grains", candidates)
    if header != other:
        raise ValueError(
            f"--candidate-grains must have the columns of --query-grains, {', '.join(header)}, "
            f"got {', '.join(other)}"
        )
    numbers: list[dict[str, int]] = [{} for _ in header]

    def keys(rows: list[list[str]]) -> Keys:
        numbered = [
            [
                of.setdefault(cell, len(of)) if cell else -1
                for of, cell in zip(numbers, row, strict=True)
            ]
            for row in rows
        ]
        return np.array(numbered, dtype=np.int64).reshape(-1, len(header))

    return header, keys(q), keys(c)


def _table(option: str, path: Path) -> tuple[list[str], list[list[str]]]:
    lines = read_lines(option, path)
    rows = [
        [cell.strip() for cell in row]
        for row in csv.reader(lines, delimiter=_DELIMITERS[path.suffix])
    ]
    header, body = rows[0], rows[1:]
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise ValueError(
                f"{option} must have {len(header)} columns like its header, got {len(row)} in line "
                f"{number} of {path}"
            )
    return header, body
