"""Files that are written whole or not at all, and checkpoints of training runs in them."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import json
import os
import re
import sys
import threading
import uuid
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_ROOM = 1 << 20  # bytes that the results take at most
_LIBRARIES = ("torch", "numpy", "pillow", "tokenizers", "transformers")  # results may hang on them


class FileError(Exception):
    """A file that cannot be read or written: which one, why, and the mend."""


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Whoever reads `path` finds the old content or the new one, after a crash too.

    Raises:
        OSError: it cannot be written; the old content stays, and no other file is left.
    """
    path = _target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")  # another process has its own
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # Windows opens no folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def require_room(path: Path) -> None:
    """Before minutes of training: that the results can be written to `path`. What a killed command
    left half-written there is removed.

    Raises:
        FileError: they cannot.
    """
    try:
        probe = _target(path).with_name(f"{path.name}.room")
        write_atomically(probe, os.urandom(_ROOM))
        probe.unlink()
        _remove_parts(path)
    except OSError as error:
        raise FileError(
            f"{path} cannot be written ({_reason(error)}); make room there, or choose another "
            "place with --out"
        ) from error


def read_results(path: Path) -> dict[str, Any]:
    """The JSON of an earlier command, of which a part stays; empty: there is none.

    Raises:
        FileError: it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read ({error}); move it away, or mend it") from error
    if not isinstance(found, dict):
        raise FileError(f"{path} must hold a JSON object, got {type(found).__name__}; move it away")
    return found


@dataclass(frozen=True)
class Checkpoint:
    """What is kept of one run; see `Checkpoints.of`."""

    path: Path
    _run: str
    _not_written: Callable[[OSError], None]

    def load(self) -> Any:
        """What was saved last; None: nothing.

        Raises:
            FileError: the file is damaged, of another program, or cannot be read.
        """
        _remove_parts(self.path)
        try:
            content = self.path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._unusable(f"cannot be read ({_reason(error)})") from error
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                damaged = archive.testzip()  # torch.load compares no checksums
            if damaged is not None:
                raise ValueError(f"wrong checksum of {damaged}")
            found = torch.load(io.BytesIO(content), weights_only=True)
            run, state = found["run"], found["state"]
        except Exception as error:  # of many kinds
            raise self._unusable("is damaged, or no checkpoint") from error
        if run != self._run:
            raise self._unusable("is the checkpoint of another run")
        return state

    def save(self, state: Any) -> None:
        """Tensors, numbers and texts, in lists and dictionaries. A disk that is full is no error:
        that is said once, the last checkpoint stays, and the training goes on.
        """
        buffer = io.BytesIO()
        torch.save({"run": self._run, "state": state}, buffer)
        try:
            write_atomically(self.path, buffer.getbuffer())
        except OSError as error:
            self._not_written(error)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
            _remove_parts(self.path)

    def _unusable(self, why: str) -> FileError:
        return FileError(f"{self.path} {why}; delete it, and its run is trained anew")


class Checkpoints:
    """The checkpoints of one command, a file for each run.

    Args:
        folder: made when the first one is written.
        command: begins the lines on the standard error.
        sources: folder of Python files, beside this package, that the results hang on.
    """

    def __init__(self, folder: Path, command: str, *, sources: Path | None = None) -> None:
        self.folder = folder
        self._command = command
        folders = [Path(__file__).parent, *([] if sources is None else [sources])]
        self._facts = {"command": command, "code": _digest(folders), **_versions()}
        self._known: list[Checkpoint] = []
        self._lock = threading.Lock()
        self._incomplete = False  # one could not be written

    def of(self, label: str, **facts: Any) -> Checkpoint:
        """Of the run that `label` and `facts` (of JSON) name, with this code and these libraries:
        with others it is another run, in another file.
        """
        run = json.dumps({**self._facts, "label": label, **facts}, sort_keys=True)
        name = re.sub(r"[^\w.]+", "-", label)
        name = f"{name}-{hashlib.sha256(run.encode()).hexdigest()[:16]}.pt"
        checkpoint = Checkpoint(self.folder / name, run, self._not_written)
        self._known.append(checkpoint)
        return checkpoint

    def announce(self, finished: int, total: int, under_way: int = 0) -> None:
        """One line when a command continues."""
        if finished + under_way > 0:
            more = f", {under_way} under way" if under_way else ""
            self._say(f"continuing from {self.folder}: {finished} of {total} runs finished{more}")

    @contextlib.contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """The results are written in its block.

        Raises:
            FileError: they cannot be.
        """
        try:
            yield
        except OSError as error:
            kept = f"what was trained is kept in {self.folder}"
            if self._incomplete:
                kept = f"not all that was trained is kept in {self.folder}"
            raise FileError(
                f"the results cannot be written to {path} ({_reason(error)}); make room there and "
                f"run the same command again: {kept}"
            ) from error

    def clear(self) -> None:
        """Removes them, and folders that are empty then: the results are written."""
        for checkpoint in self._known:
            checkpoint.remove()
        with contextlib.suppress(OSError):
            self.folder.rmdir()
            self.folder.parent.rmdir()

    def _not_written(self, error: OSError) -> None:
        with self._lock:
            said, self._incomplete = self._incomplete, True
        if not said:
            self._say(
                f"no checkpoint in {self.folder} ({_reason(error)}); the training goes on, but "
                "would begin anew, or at the last checkpoint, after a stop"
            )

    def _say(self, text: str) -> None:
        print(f"{self._command}: {text}", file=sys.stderr, flush=True)


def _target(path: Path) -> Path:
    """The file itself, where `path` is a link to it. A device is none to be replaced."""
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError("it is a folder or a device, not a file")
    return path


def _remove_parts(path: Path) -> None:
    """What a killed process left half-written."""
    path = Path(os.path.realpath(path))
    for part in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError):
            part.unlink()


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _digest(folders: list[Path]) -> str:
    """Of all Python files: a checkpoint of other code is never continued."""
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{file.relative_to(folder)}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
