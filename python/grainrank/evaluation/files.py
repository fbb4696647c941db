"""Embeddings, texts and ids from files. Every error names the option that gave the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .embeddings import Embeddings


def read_embeddings(option: str, given: str) -> Embeddings:
    """A `.npy` file, memory-mapped, or a tensor of a `.safetensors` file, `FILE` or `FILE:NAME`."""
    path, name = _split(option, given)
    if path.suffix == ".npy" and name is None:
        return _read_npy(option, path)
    if path.suffix == ".safetensors":
        return _read_safetensors(option, path, name)
    raise ValueError(
        f"{option} must be FILE.npy, FILE.safetensors or FILE.safetensors:NAME, got {given}; "
        f"save the array with numpy.save"
    )


def read_integers(option: str, path: Path) -> np.ndarray[Any, Any]:
    """An array of a `.npy` file, int64."""
    array = _read_npy(option, path)
    if array.dtype.kind not in "iu":
        raise ValueError(
            f"{option} must hold integers, got {array.dtype} in {path}; "
            f"number the groups of each grain, or give their names as .tsv"
        )
    return np.array(array, dtype=np.int64)


def read_lines(option: str, path: Path) -> tuple[str, ...]:
    """One text a line."""
    lines = _text(option, path).split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise ValueError(f"{option} must have one line an item, got the empty file {path}")
    return tuple(line.removesuffix("\r") for line in lines)


def read_ids(option: str, path: Path | None, count: int, of: str) -> tuple[str, ...]:
    """One id a line; row numbers where there is no file."""
    if path is None:
        return tuple(map(str, range(count)))
    ids = read_lines(option, path)
    if len(ids) != count:
        raise ValueError(
            f"{option} must have one id for each of the {count} {of}, got {len(ids)} in {path}"
        )
    seen: dict[str, int] = {}
    for line, item in enumerate(ids, start=1):
        if len(item.split()) != 1 or item.strip() != item:
            raise ValueError(
                f"{option} must have ids of one word, got {item!r} in line {line} of {path}; "
                f"a TREC file has its columns between spaces"
            )
        if seen.setdefault(item, line) != line:
            raise ValueError(
                f"{option} must name every item once, got {item!r} in lines {seen[item]} and "
                f"{line} of {path}"
            )
    return ids


def _text(option: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{option} must be UTF-8 text, got other bytes in {path}") from error
    except OSError as error:
        raise _unreadable(option, path, error) from error


def _split(option: str, given: str) -> tuple[Path, str | None]:
    if not Path(given).exists() and ":" in given:
        path, _, name = given.rpartition(":")
        if Path(path).exists():
            return Path(path), name
    return Path(given), None


def _read_npy(option: str, path: Path) -> np.ndarray[Any, Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise _unreadable(option, path, error) from error
    except ValueError as error:
        raise ValueError(
            f"{option} must be an array that numpy.save wrote, got {path}: {error}"
        ) from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{option} must be one array, got an archive in {path}; use numpy.save")
    return array


def _read_safetensors(option: str, path: Path, name: str | None) -> Tensor:
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{option}: {path} needs safetensors: pip install 'grainrank[eval]'"
        ) from error
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if name is None and len(names) == 1:
                name = names[0]
            if name not in names:
                came = "no name" if name is None else repr(name)
                raise ValueError(
                    f"{option} must name one of the tensors {', '.join(sorted(names))} of {path}, "
                    f"got {came}; write {path}:{min(names, default='NAME')}"
                )
            tensor: Tensor = file.get_tensor(name)
    except OSError as error:
        raise _unreadable(option, path, error) from error
    except SafetensorError as error:
        raise ValueError(f"{option} must be a safetensors file, got {path}: {error}") from error
    return tensor


def _unreadable(option: str, path: Path, error: OSError) -> OSError:
    reason = error.strerror or "no such file"
    return OSError(f"{option} must be a file that can be read, got {path}: {reason}")
