"""Which backend runs: the choice is logged once, a named backend never falls back."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from grainrank import backends, level_statistics, multi_level_ranking_loss
from grainrank.testing import Shape, make_inputs

native = pytest.importorskip("grainrank._native")
SETS = ("amx_bf16", "avx512_bf16", "avx512", "avx2", "neon", "scalar")


@pytest.fixture
def forgotten() -> Iterator[None]:
    """As in a new process: nothing chosen and nothing logged yet."""
    for cached in (backends._pick, backends._native_error):
        cached.cache_clear()
    yield
    for cached in (backends._pick, backends._native_error):
        cached.cache_clear()


@pytest.fixture
def no_native(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library does not load."""
    monkeypatch.setitem(sys.modules, "grainrank._native", None)
    monkeypatch.delitem(sys.modules, "grainrank.cpu", raising=False)


def loss(backend: str = "auto") -> Tensor:
    inputs = make_inputs(Shape(5, 7, 4, 2))
    return multi_level_ranking_loss(  # type: ignore[no-any-return]
        *inputs[:2],
        inputs.levels,
        temperature=0.2,
        backend=backend,  # type: ignore[arg-type]
    )


def test_auto_says_once_what_it_picked(forgotten: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="grainrank"):
        for _ in range(3):
            loss()
    (record,) = caplog.records
    best = importlib.import_module("grainrank.cpu").instruction_sets()[0]
    assert record.levelname == "INFO"
    assert record.message == f"backend: auto picked cpu ({best}) for cpu tensors"


def test_a_named_backend_is_silent(forgotten: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="grainrank"):
        loss("cpu")
        loss("reference")
    assert caplog.records == []


def test_auto_without_the_library_warns_and_uses_the_reference(
    no_native: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="grainrank"):
        assert torch.equal(loss(), loss("reference"))
        loss()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "auto picked reference, which stores the N x M matrix" in record.message
    assert "the native library did not load" in record.message


def test_cpu_without_the_library_is_an_error(no_native: None) -> None:
    """With the reason and the mend; it does not fall back."""
    with pytest.raises(RuntimeError, match=r"did not load .*; reinstall grainrank with a C"):
        loss("cpu")


def test_other_devices_use_the_reference(
    forgotten: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`meta` stands for a device without a kernel; nothing is computed on it."""
    for name in ("_triton_error", "_cuda_error"):
        monkeypatch.setattr(backends, name, lambda device: f"needs a GPU, got {device}")
    assert backends.resolve("auto", torch.device("meta")) == "reference"
    assert backends.resolve("reference", torch.device("meta")) == "reference"
    assert "triton needs a GPU, got meta; cuda needs a GPU, got meta" in caplog.text


@pytest.mark.parametrize("there", ["triton", "cuda"])
def test_auto_takes_triton_before_cuda(
    there: str, forgotten: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = None if there == "triton" else "is not installed"
    monkeypatch.setattr(backends, "_triton_error", lambda device: reason)
    monkeypatch.setattr(backends, "_cuda_error", lambda device: None)
    with caplog.at_level(logging.INFO, logger="grainrank"):
        assert backends.resolve("auto", torch.device("cuda")) == there
    assert [r.message for r in caplog.records] == [f"backend: auto picked {there} for cuda tensors"]


@pytest.mark.parametrize("installed", [True, False])
def test_cuda_is_refused_with_the_mend(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grainrank._cuda", sys if installed else None)
    expected = 'needs tensors on an NVIDIA GPU, got queries on cpu; or use backend="auto"'
    if not installed:
        expected = "is not part of this installation .*: reinstall grainrank with nvcc on the PATH"
    with pytest.raises(ValueError, match=expected):
        loss("cuda")


@pytest.mark.parametrize("name", SETS)
def test_instruction_sets_of_this_machine(name: str) -> None:
    """Those that are here run in `test_accuracy_*.py`; this says which are not."""
    cpu = importlib.import_module("grainrank.cpu")
    assert set(cpu.instruction_sets()) <= set(SETS)
    assert cpu.instruction_sets()[-1] == "scalar"
    flags = Path("/proc/cpuinfo")
    if name == "avx2" and flags.exists() and " avx2 " in flags.read_text():
        assert "avx2" in cpu.instruction_sets()
    if name not in cpu.instruction_sets():
        pytest.skip(f"this machine lacks {name}: {cpu.instruction_sets()}")


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_passes_use_the_threads_of_torch() -> None:
    """No second pool: after torch has its threads, a step adds none."""
    assert native.parallel_runtime() == "openmp"
    inputs = make_inputs(Shape(700, 700, 16, 3))
    q = inputs.queries.requires_grad_()
    (q @ q.T).exp().sum().backward()
    torch.set_num_threads(2)
    (q @ q.T).exp().sum()
    before = threads()
    for _ in range(3):
        multi_level_ranking_loss(q, inputs.candidates, inputs.levels, temperature=0.1).backward()
        level_statistics(*inputs[:2], inputs.levels, temperature=0.1)
    assert threads() <= before


def test_many_threads_on_few_rows() -> None:
    """More threads than pieces of work."""
    expected = loss("cpu")
    torch.set_num_threads(16)
    assert torch.equal(loss("cpu"), expected)
