"""`grainrank bench`: what is timed is right, what does not fit is left out, and what is written."""

from __future__ import annotations

import json
import os
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from grainrank.__main__ import main
from grainrank.bench import losses, measure, memory
from grainrank.bench import main as bench_main
from grainrank.bench.timing import interleave, ratio
from grainrank.bench.verify import Setting
from grainrank.console import terminal_width
from grainrank.testing import Inputs, Shape

N, M, D = 16, 24, 8
TINY = ("--n", str(N), "--m", str(M), "--dim", str(D), "--rounds", "2", "--device", "cpu")
CPU = torch.device("cpu")

Bench = Callable[..., tuple[int, str]]


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Bench:
    """Exit code and output; nothing on the standard error."""

    def run(*arguments: object) -> tuple[int, str]:
        code = main(["bench", *TINY, *map(str, arguments)])
        out, err = capsys.readouterr()
        assert err == ""
        return code, out

    return run


@pytest.fixture
def no_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system that is not Linux."""
    monkeypatch.setattr(measure, "can_measure", lambda: False)


# What is timed is right.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", losses.LOSSES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_providers_compute_one_loss(loss: str, dtype: torch.dtype, backend: str) -> None:
    plan = measure.Plan(loss, backend, Setting(dtype, CPU, levels=3))
    assert measure.check(plan) == {"grainrank": [], "dense": []}


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_any_number_of_levels(levels: int) -> None:
    plan = measure.Plan("multi_level", "cpu", Setting(torch.float32, CPU, levels))
    assert measure.check(plan) == {"grainrank": [], "dense": []}


def bent(loss: losses.Loss) -> losses.Loss:
    """The loss is right, one gradient is not."""

    def wrong(inputs: Inputs, scale: Tensor) -> Tensor:
        x = inputs.candidates[3, 1]
        return loss(inputs, scale) + 1e-3 * (x - x.detach())

    return wrong


def test_a_wrong_gradient_is_not_timed(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ours(loss: str, backend: str) -> losses.Loss:
        right = losses.ours(loss, backend)
        return right if backend == "reference" else bent(right)

    monkeypatch.setattr(measure, "ours", ours)
    monkeypatch.setattr(bench_main, "measure", None)  # would be called to time it
    out = tmp_path / "bench.json"
    code, printed = bench("--out", out)
    assert code == 1
    assert "grainrank is WRONG: candidates' gradient: error" in printed
    assert "Nothing is timed." in printed
    found = json.loads(out.read_text())
    assert (found["ok"], found["shapes"]) == (False, [])
    code, printed = bench("--json")
    assert (code, list(json.loads(printed)["wrong"])) == (1, ["grainrank"])


def test_another_loss_is_no_yardstick(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "dense", lambda loss: bent(losses.dense(loss)))
    code, printed = bench("--loss", "clip")
    assert code == 1
    assert "dense PyTorch is WRONG: candidates' gradient: error" in printed


# What is written.


@pytest.mark.parametrize("loss", losses.LOSSES)
def test_json_and_file_say_the_same(
    loss: str, bench: Bench, tmp_path: Path, no_peaks: None
) -> None:
    out = tmp_path / "bench.json"
    code, printed = bench("--loss", loss, "--json", "--out", out)
    found = json.loads(printed)
    assert (code, found["ok"], found["wrong"]) == (0, True, {})
    assert json.loads(out.read_text()) == found
    assert (found["loss"], found["levels"]) == (loss, 3 if loss == "multi_level" else 1)
    assert found["machine"]["threads"] == torch.get_num_threads()
    (shape,) = found["shapes"]
    assert [shape[key] for key in ("n", "m", "dim", "flops_of_products")] == [
        N, M, D, 3 * 2 * N * M * D,
    ]  # fmt: skip
    providers = shape["providers"]
    assert list(providers) == ["grainrank", "dense", "products"]
    for x in providers.values():
        assert len(x["seconds"]) == 2
        assert x["median_seconds"] == statistics.median(x["seconds"])
        for base in ("products", "grainrank"):
            expected = [a / b for a, b in zip(x["seconds"], providers[base]["seconds"],
                                              strict=True)]  # fmt: skip
            assert x[f"of_{base}"] == pytest.approx(statistics.median(expected))
        assert "peak_bytes" not in x


def test_each_n_with_each_m_and_dim(bench: Bench, no_peaks: None) -> None:
    _, printed = bench("--n", 4, 8, "--m", 8, 16, "--dim", 4, 2, "--rounds", 1, "--json")
    shapes = [(x["n"], x["m"], x["dim"]) for x in json.loads(printed)["shapes"]]
    assert shapes == [(n, m, d) for n in (4, 8) for m in (8, 16) for d in (4, 2)]


def test_table(bench: Bench, no_peaks: None) -> None:
    code, printed = bench()
    assert code == 0
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 100
    rows = {line.split("  ")[1]: line.split() for line in lines if line.startswith("  ")}
    assert set(rows) == {"grainrank", "dense PyTorch", "bare products"}
    assert rows["grainrank"][3:] == ["1.00", "-"]
    assert rows["bare products"][3] == "1.00"


def test_compiled_is_one_more_provider(
    bench: Bench, no_peaks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's compiler itself takes half a minute."""
    compiled: list[object] = []

    def compile(loss: losses.Loss, dynamic: bool) -> losses.Loss:
        compiled.append(loss)
        return loss

    measure.compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", compile)
    try:
        code, printed = bench("--compile", "--json")
    finally:
        measure.compiled.cache_clear()
    providers = json.loads(printed)["shapes"][0]["providers"]
    assert code == 0
    assert list(providers) == ["grainrank", "dense", "compiled", "products"]
    assert compiled == [losses.dense("multi_level")]


# What does not fit, and what fails.


def test_what_does_not_fit_is_skipped(
    bench: Bench, no_peaks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what is free holds one matrix, but not those of a dense step."""
    monkeypatch.setattr(measure, "free_bytes", lambda device: 2 * 4 * N * M)
    providers = json.loads(bench("--json")[1])["shapes"][0]["providers"]
    assert list(providers["dense"]) == ["skipped"]
    assert "seconds" in providers["grainrank"]
    assert "seconds" in providers["products"]
    printed = bench()[1]
    assert "dense PyTorch, N 16: skipped: N x M matrices, about 0.0 GiB, more than half" in printed
    monkeypatch.setattr(measure, "free_bytes", lambda device: 2 * 4 * N * M - 2)
    providers = json.loads(bench("--json")[1])["shapes"][0]["providers"]
    assert [name for name, x in providers.items() if "skipped" in x] == ["dense", "products"]
    assert "of_products" not in providers["grainrank"]


def test_the_reference_stores_the_matrix_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "free_bytes", lambda device: 100)
    plan = measure.Plan("multi_level", "reference", Setting(torch.float32, CPU))
    assert measure._too_large("grainrank", plan, Shape(N, M, D)) is not None
    plan = plan._replace(backend="cpu")
    assert measure._too_large("grainrank", plan, Shape(N, M, D)) is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--loss", "clip", "--levels", "2"), "--levels is an option of --loss multi_level"),
        (("--loss", "siglip", "--m", "8"), "--m must be N = 16 or more for --loss siglip"),
        (("--device", "cuda"), "--device cuda needs a GPU that PyTorch sees"),
        (("--device", "meta"), "--device must be cpu or cuda, got meta"),
        (("--out", "/nowhere/at/all.json"), "No such file or directory"),
    ],
)
def test_what_cannot_run(
    arguments: tuple[str, ...],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit code 2 and one line, before anything is timed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench_main, "measure", None)
    assert main(["bench", *TINY, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("grainrank bench: ")
    assert expected in err
    assert err.count("\n") == 1


def test_interrupted(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    no_peaks: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Quietly; the shapes that are done are in the file."""

    def first(plan: measure.Plan, shape: Shape, rounds: int) -> dict[str, Any]:
        if shape.N > N:
            raise KeyboardInterrupt
        return measure.measure(plan, shape, rounds)

    monkeypatch.setattr(bench_main, "measure", first)
    out = tmp_path / "bench.json"
    arguments = ["bench", *TINY, "--n", str(N), str(2 * N), "--m", "64", "--out", str(out)]
    assert main(arguments) == 130
    assert capsys.readouterr() == ("", "")
    assert [x["n"] for x in json.loads(out.read_text())["shapes"]] == [N]


# Memory and time.


@pytest.mark.skipif(not memory.can_measure(), reason="needs /proc/self/clear_refs, as on Linux")
def test_peaks_of_processes_of_their_own() -> None:
    n, d = 1024, 8
    plan = measure.Plan("multi_level", "cpu", Setting(torch.float32, CPU))
    peak = {
        name: memory.peak_apart(measure.peak_of_step, name, plan, Shape(n, n, d))
        for name in ("products", "dense")
    }
    matrix = 4 * n * n
    assert 0.9 * matrix <= peak["products"] <= 2 * matrix
    assert 10 * matrix <= peak["dense"] <= 30 * matrix


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="ValueError: invalid literal for int"):
        memory.peak_apart(int, "ten")
    with pytest.raises(ChildProcessError, match="its process ended with 3 and no answer"):
        memory.peak_apart(os._exit, 3)
    with pytest.raises(RuntimeError, match="its process was killed by signal 9"):
        memory.peak_apart(signal.raise_signal, signal.SIGKILL)


def test_a_process_that_was_killed_is_skipped(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ended it would end this process too."""

    def killed(work: object, name: str, *given: object) -> int:
        if name == "dense":
            raise RuntimeError("its process was killed by signal 9")
        if name == "products":
            raise ChildProcessError("no process here")
        return 7

    monkeypatch.setattr(measure, "can_measure", lambda: True)
    monkeypatch.setattr(measure, "peak_apart", killed)
    providers = json.loads(bench("--json")[1])["shapes"][0]["providers"]
    assert providers["dense"] == {"skipped": "its process was killed by signal 9"}
    assert providers["products"]["peak_skipped"] == "no process here"
    assert "seconds" in providers["products"]
    assert providers["grainrank"]["peak_bytes"] == 7


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    assert memory._left_to_the_container(tmp_path) is None
    (tmp_path / "memory.current").write_text("30\n")
    for limit, left in (("max\n", None), ("100\n", 70), ("20\n", 0)):
        (tmp_path / "memory.max").write_text(limit)
        assert memory._left_to_the_container(tmp_path) == left


def test_rounds_are_interleaved() -> None:
    """Every provider once in a round, in an order of the round's own; the first is not counted."""
    calls: list[str] = []
    names = ("a", "b", "c")
    clock = iter(range(1000))
    seconds = interleave(
        {name: lambda name=name: calls.append(name) for name in names},  # type: ignore[misc]
        20,
        lambda run: (run(), float(next(clock)))[1],  # type: ignore[func-returns-value]
    )
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(rounds) == 21
    assert all(sorted(x) == list(names) for x in rounds)
    assert len({tuple(x) for x in rounds}) > 3
    for name in names:
        assert seconds[name] == [3 * i + x.index(name) for i, x in enumerate(rounds)][1:]
    assert ratio({"a": [1.0, 8.0, 9.0], "b": [1.0, 2.0, 3.0]}, "a", "b") == 3.0


def test_width_of_no_terminal() -> None:
    assert terminal_width() == 100
