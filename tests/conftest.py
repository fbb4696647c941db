"""What every test runs under: poisoned memory, two threads, and no backend skipped in silence."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

# Read when OpenMP starts: on a machine whose cores are shared, threads that spin while they wait
# make the suite many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without-native",
        action="store_true",
        help="skip the cpu backend where the native library is missing, instead of failing",
    )
    parser.addoption("--gpu", metavar="sm_80", help="run tests/gpu on the simulator instead")


def _available() -> list[str]:
    try:
        return list(importlib.import_module("grainrank.cpu").instruction_sets())
    except ImportError:
        return []


def pytest_configure(config: pytest.Config) -> None:
    # Triton's kernels run in its interpreter, on CPU tensors, unless their compiled code is what is
    # tested. Read where a kernel is defined.
    compiled = config.option.markexpr in ("compiled", "gpu")
    os.environ.setdefault("TRITON_INTERPRET", "0" if compiled else "1")
    if not _available() and not config.getoption("without_native"):
        raise pytest.UsageError(
            "the native library grainrank._native did not load, so the whole cpu backend would be "
            "skipped; build it (pip install -e .), or pass --without-native"
        )


def _poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(make)
    def wrapper(*args: Any, **kwargs: Any) -> Tensor:
        tensor = make(*args, **kwargs)
        with torch.no_grad():
            if tensor.dtype.is_floating_point:
                return tensor.fill_(torch.nan)
            return tensor.fill_(True) if tensor.dtype == torch.bool else tensor.fill_(-99)

    return wrapper


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nobody wrote reads as NaN (integers: -99)."""
    for owner, names in (
        (torch, ("empty", "empty_like", "empty_strided")),
        (torch.Tensor, ("new_empty", "new_empty_strided")),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))
    if _available():
        monkeypatch.setattr("grainrank.cpu._kept", [])


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.hookimpl(trylast=True)  # the innermost loop: what its tests share is computed once
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "instruction_set" in metafunc.fixturenames:
        sets = _available()
        # The passes of avx512, with a product more: the best of them.
        same = [name for name in sets if name in ("amx_bf16", "avx512_bf16", "avx512")]
        sets = [name for name in sets if name not in same[1:]]
        metafunc.parametrize("instruction_set", sets, indirect=True)


@pytest.fixture
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The cpu backend runs on this instruction set while the test lasts; all that there are, and
    their products of bfloat16 whether they are fast or not.
    """
    name: str = request.param
    monkeypatch.setattr("grainrank.cpu.instruction_sets", lambda: [name])
    has_product = importlib.import_module("grainrank.cpu")._native.has_product_bf16
    monkeypatch.setattr("grainrank.cpu._native.bf16_product_is_faster", has_product)
    return name


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and not _available():
        pytest.skip("the native library did not load (--without-native)")
    name: str = request.param
    return name
