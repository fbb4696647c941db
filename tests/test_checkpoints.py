"""Checkpoints: written whole or not at all, continued to equal results, and no disk too full."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_icd10
import torch

from grainrank.__main__ import main
from grainrank.checkpoints import (
    Checkpoints,
    FileError,
    read_results,
    require_room,
    write_atomically,
)
from grainrank.data import icd10
from grainrank.demo import loop, runs
from grainrank.demo import main as demo_main

ROOT = Path(__file__).parents[1]
ARGUMENTS = ["--seeds", "1", "--epochs", "3"]  # 4 runs, 3 x 12 steps
STATE = {"weights": torch.arange(6.0).view(2, 3), "seconds": 0.1, "names": ["a", "b"]}
Demo = Callable[..., tuple[int, Path]]


@contextlib.contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """Whoever writes a larger one meets an OSError of the system, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Files


def test_a_failed_write_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "result.json"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, b"new")
    with _largest_file(100), pytest.raises(OSError, match="File too large"):
        write_atomically(path, bytes(101))
    assert path.read_bytes() == b"old"
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_a_link_stays_one_and_a_device_is_not_replaced(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"old")
    (tmp_path / "link").symlink_to("file")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"
    for other in (Path(os.devnull), tmp_path):
        with pytest.raises(OSError, match="not a file"):
            write_atomically(other, b"")


def test_room_is_asked_for_before_the_training(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "result.json"
    path.parent.mkdir()
    path.with_name("result.json.0123abcd.part").touch()
    require_room(path)
    assert not list(path.parent.iterdir())
    with _largest_file(100_000), pytest.raises(FileError, match=r"cannot be .*make room there"):
        require_room(path)
    path.parent.rmdir()
    path.parent.touch()
    with pytest.raises(FileError, match="choose another place with --out"):
        require_room(path)


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_an_earlier_result_that_is_none_is_named(content: str, tmp_path: Path) -> None:
    assert read_results(tmp_path / "none.json") == {}
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(FileError, match=r"result\.json .*; move it away"):
        read_results(tmp_path / "result.json")


# Checkpoints


def test_a_checkpoint_belongs_to_its_run_alone(tmp_path: Path) -> None:
    """And to the code, of which one folder is named here."""
    (tmp_path / "sources").mkdir()

    def checkpoints() -> Checkpoints:
        return Checkpoints(tmp_path / "kept", "demo", sources=tmp_path / "sources")

    run = checkpoints().of("infonce t 0.1", seed=0, recipe={"temperature": 0.1})
    assert run.load() is None
    run.save(STATE)
    run.path.with_name(f"{run.path.name}.0123abcd.part").touch()  # of a killed process
    again = checkpoints().of("infonce t 0.1", recipe={"temperature": 0.1}, seed=0).load()
    assert torch.equal(again["weights"], STATE["weights"])
    assert again["seconds"] == 0.1
    assert [file.name for file in run.path.parent.iterdir()] == [run.path.name]
    assert checkpoints().of("infonce t 0.1", seed=1, recipe={"temperature": 0.1}).load() is None
    assert checkpoints().of("infonce t 0.1", seed=0, recipe={"temperature": 0.2}).load() is None
    (tmp_path / "sources" / "recipes.py").touch()
    assert checkpoints().of("infonce t 0.1", seed=0, recipe={"temperature": 0.1}).load() is None


@pytest.mark.parametrize("damage", ["empty", "cut", "one bit", "foreign", "renamed", "folder"])
def test_a_checkpoint_that_is_none_is_named_with_the_mend(damage: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "demo")
    run, other = checkpoints.of("run"), checkpoints.of("other")
    run.save(STATE)
    content = bytearray(run.path.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "one bit":
        content[content.index(bytes(STATE["weights"].numpy())) + 5] ^= 1  # type: ignore[attr-defined]
    elif damage == "foreign":
        torch.save(STATE, run.path)
        content = bytearray(run.path.read_bytes())
    elif damage == "renamed":
        other.save(STATE)
        content = bytearray(other.path.read_bytes())
    elif damage == "folder":
        run.path.unlink()
        run.path.mkdir()
    if damage != "folder":
        run.path.write_bytes(b"" if damage == "empty" else content)
    with pytest.raises(FileError, match="delete it, and its run is trained anew") as found:
        run.load()
    assert str(run.path) in str(found.value)


# The demo


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        data = tiny_icd10.data()
        tiny_icd10.shrink(patched.setattr)
        patched.setattr(icd10, "load", lambda: data)
        patched.setattr(loop, "EVERY", 0.0)
        patched.setitem(sys.modules, "matplotlib.figure", None)  # takes longer than the rest
        yield


@pytest.fixture
def demo(tiny: None, tmp_path: Path) -> Demo:
    def run(*arguments: str) -> tuple[int, Path]:
        out = tmp_path / "out"
        return main(["demo", "--out", str(out), *ARGUMENTS, *arguments]), out

    return run


@pytest.fixture(scope="module")
def whole(tiny: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The results of a command that nobody stops."""
    out = tmp_path_factory.mktemp("whole")
    assert main(["demo", "--out", str(out), *ARGUMENTS]) == 0
    assert not (out / "checkpoints").exists()
    return _results(out)


def _results(out: Path) -> Any:
    """All but what differs from one time to the next."""
    found = json.loads((out / "results.json").read_text())
    for part in (found, *found["methods"].values()):
        del part["seconds"]
    del found["machine"]
    return found


@pytest.mark.parametrize(
    ("point", "place"),
    [
        ("step", "3"),  # of 36
        ("step", "21"),
        ("fsync", "9"),  # of a checkpoint
        ("replace", "results.json"),  # all runs are finished
    ],
)
def test_killed_anywhere_the_same_command_ends_with_equal_results(
    point: str, place: str, demo: Demo, whole: Any, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "tests" / "killed_demo.py"), point, place]
    killed = subprocess.run([*command, "--out", str(out), *ARGUMENTS], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (out / "results.json").exists()
    # Runs are side by side: two may be writing their checkpoints.
    unfinished = {"step": (0,), "fsync": (1, 2), "replace": (1,)}[point]
    assert len(list(out.glob("**/*.part"))) in unfinished
    capsys.readouterr()
    assert demo()[0] == 0
    printed = capsys.readouterr().err
    if place != "3":
        assert f"continuing from {out / 'checkpoints'}: " in printed
        assert "of 36 steps" not in printed
    if place == "results.json":
        assert "4 of 4 runs finished\n" in printed
        assert "steps" not in printed
    assert _results(out) == whole
    assert sorted(file.name for file in out.iterdir()) == ["examples.txt", "results.json"]


def test_no_room_for_checkpoints_is_one_line_and_the_training_goes_on(
    demo: Demo, whole: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with _largest_file((1 << 20) + 100):  # those of runs under way are larger
        code, out = demo()
    assert code == 0
    assert _results(out) == whole
    printed = capsys.readouterr().err
    assert printed.count("no checkpoint in") == 1
    assert "File too large" in printed


def test_no_room_for_results_is_said_before_the_training(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_main, "run_all", lambda *_: pytest.fail("trained"))
    with _largest_file(100_000):
        code, out = demo()
    assert code == 1
    assert capsys.readouterr().err == (
        f"grainrank demo: {out / 'results.json'} cannot be written (File too large); make room "
        "there, or choose another place with --out\n"
    )


def test_results_that_cannot_be_written_lose_no_training(
    demo: Demo, whole: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = demo_main._save

    def full(*arguments: Any) -> Any:
        with _largest_file(100):
            return save(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(demo_main, "_save", full)
        code, out = demo()
    assert code == 1
    printed = capsys.readouterr()
    assert "recall@10" in printed.out
    last = printed.err.splitlines()[-1]
    assert f"the results cannot be written to {out} (File too large); make room" in last
    assert last.endswith(f"what was trained is kept in {out / 'checkpoints'}")
    with monkeypatch.context() as patched:
        patched.setattr(runs, "rank", lambda *_: pytest.fail("done anew"))
        assert demo()[0] == 0
    assert _results(out) == whole


def test_a_damaged_checkpoint_ends_the_command_before_the_training(
    demo: Demo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo_main, "results", lambda *_: sys.exit(9))
    with pytest.raises(SystemExit):
        demo()
    damaged = next((tmp_path / "out" / "checkpoints").glob("*multi_level*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    monkeypatch.setattr(runs, "run_side_by_side", lambda *_: pytest.fail("trained"))
    capsys.readouterr()
    assert demo()[0] == 1
    assert capsys.readouterr().err == (
        f"grainrank demo: {damaged} is damaged, or no checkpoint; delete it, and its run is "
        "trained anew\n"
    )


def test_tuning_continues_too_and_leaves_no_file(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(demo_main, "tuning_table", lambda *_: sys.exit(9))
        with pytest.raises(SystemExit):
            demo("--tune")
    capsys.readouterr()
    code, out = demo("--tune")
    assert code == 0
    assert "12 of 12 runs finished" in capsys.readouterr().err
    assert not out.exists()


# The example


def test_the_distributed_example_continues_to_equal_losses(tmp_path: Path) -> None:
    train = runpy.run_path(str(ROOT / "examples" / "train_distributed.py"))["train"]
    checkpoint = tmp_path / "model.pt"
    train(3, 32, "gather", checkpoint)
    checkpoint.with_suffix(".part").write_bytes(b"half")  # of a killed process
    continued = train(6, 32, "gather", checkpoint)
    assert continued == train(6, 32, "gather", None)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


# A benchmark


def test_a_supervised_start_and_what_followed_are_not_trained_again(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """benchmarks/elva.py; train_ranks.py has its own tests."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    elva, tasks = (importlib.import_module(name) for name in ("elva", "elva_tasks"))
    monkeypatch.setattr(elva, "BATCH", 32)
    task = tasks.icd10_task()
    recipes = [elva.Recipe(supervised=1), elva.Recipe(ranking=1, rollouts=2)]

    def results(folder: str) -> Any:
        checkpoints = Checkpoints(tmp_path / folder, "elva")
        found = elva.runs_of_seed(task, 0, 1, 2, recipes, ["validation"], checkpoints)
        return [{**run, "seconds": None} for run in found]

    continued = elva.continued
    trained: list[Any] = []

    def stops(model: Any, task: Any, recipe: Any, *rest: Any) -> Any:
        trained.append(recipe)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return continued(model, task, recipe, *rest)

    monkeypatch.setattr(elva, "continued", stops)
    with pytest.raises(KeyboardInterrupt):
        results("stopped")
    with monkeypatch.context() as patched:
        patched.setattr(elva, "supervised_start", lambda *_: pytest.fail("trained again"))
        found = results("stopped")
    assert trained == [recipes[0], recipes[1], recipes[1]]
    assert found == results("whole")
