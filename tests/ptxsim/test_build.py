"""Compiled code is kept, whoever compiles at the same time, and runs in several threads."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from . import build as building
from .build import build, compiler
from .errors import SimulatorError
from .kernel import Kernel

pytestmark = pytest.mark.skipif(compiler() is None, reason="g++ is not on the PATH")

_KERNEL = """
.visible .entry {name}(.param .u64 x) {{
    .reg .b32 %r<4>;
    .reg .b64 %d<4>;
    ld.param.u64 %d0, [x];
    mov.u32 %r0, %tid.x;
    mul.wide.u32 %d1, %r0, 4;
    add.s64 %d0, %d0, %d1;
    ld.global.u32 %r1, [%d0];
    bar.sync 0;
    add.u32 %r1, %r1, {step};
    st.global.u32 [%d0], %r1;
    ret;
}}
"""
_HEADER = ".version 8.4\n.target sm_80\n.address_size 64\n"
PTX = _HEADER + _KERNEL.format(name="one", step=1) + _KERNEL.format(name="ten", step=10)
THREADS = 64
_PROGRAM = """
import sys
from ptxsim.test_build import PTX, THREADS, step
assert step("one") == 1 and step("ten") == 10
"""


def step(name: str, ptx: str = PTX, rounds: int = 1) -> int:
    """How much the kernel adds to each element."""
    x = np.arange(THREADS, dtype=np.uint32)
    kernel = Kernel(ptx, name)
    for _ in range(rounds):
        kernel((1,), (THREADS,), x)
    (found,) = set((x - np.arange(THREADS, dtype=np.uint32)).tolist())
    return int(found)


def test_processes_that_compile_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(building.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.chdir(Path(__file__).parents[1])
    command = [sys.executable, "-c", _PROGRAM]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    kinds = sorted(path.name.partition("-")[0] for path in tmp_path.iterdir())
    assert kinds == ["headers", "kernel", "runtime"]


def test_threads() -> None:
    """Kernels of one library and of two, at the same time."""
    other = _HEADER + _KERNEL.format(name="hundred", step=100)
    jobs = [("one", PTX), ("ten", PTX), ("hundred", other)] * 4
    with ThreadPoolExecutor(4) as pool:
        steps = list(pool.map(lambda job: step(job[0], job[1], 20), jobs))
    assert steps == [20, 200, 2000] * 4


def test_code_that_does_not_compile() -> None:
    step("one")
    before = set(building.cache_folder().iterdir())
    with pytest.raises(SimulatorError, match=r"nothing\S* was not declared"):
        build('#include "runtime.h"\nint x = nothing;\n')
    assert set(building.cache_folder().iterdir()) <= before


def test_machine_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(building.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(building, "compiler", lambda: None)
    with pytest.raises(SimulatorError, match=r"needs g\+\+"):
        step("one")
