"""The build of the CUDA passes: what CMake does with and without nvcc, and the C interface."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from compiled.simulated_cuda import KERNELS, ROOT

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not on the PATH")


def configured(folder: Path, cuda: str, path: str | None = None) -> tuple[bool, str]:
    """Whether CMake went through, and what it said. path: PATH instead of this process's."""
    environment = dict(os.environ)
    for name in ("CUDACXX", "CUDAARCHS"):
        environment.pop(name, None)
    if path is not None:
        environment["PATH"] = path
    command = [
        str(shutil.which("cmake")), "-S", str(ROOT), "-B", str(folder), "-DGRAINRANK_PYTHON=OFF",
        f"-DGRAINRANK_CUDA={cuda}",
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def without_nvcc(tmp_path: Path) -> str:
    """A PATH with the tools of a C++ build alone."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("cmake", "c++", "g++", "cc", "gcc", "make", "ninja", "ld", "ar", "ranlib", "as"):
        found = shutil.which(name)
        if found is not None:
            (tools / name).symlink_to(found)
    return str(tools)


@needs_cmake
def test_auto_without_nvcc_leaves_it_out(tmp_path: Path, without_nvcc: str) -> None:
    done, said = configured(tmp_path / "build", "AUTO", without_nvcc)
    assert done, said
    assert 'backend="cuda" is left out (set CUDACXX)' in said


@needs_cmake
def test_on_without_nvcc_is_an_error(tmp_path: Path, without_nvcc: str) -> None:
    done, said = configured(tmp_path / "build", "ON", without_nvcc)
    assert not done
    assert "GRAINRANK_CUDA=ON, but no CUDA compiler was found (set CUDACXX)" in said


@needs_cmake
@pytest.mark.parametrize("cuda", ["OFF", pytest.param("ON", marks=needs_nvcc)])
def test_targets(cuda: str, tmp_path: Path) -> None:
    done, said = configured(tmp_path, cuda)
    assert done, said
    listed = subprocess.run(
        ["cmake", "--build", str(tmp_path), "--target", "help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ("grainrank_cuda" in listed.stdout) == (cuda == "ON")


@pytest.mark.parametrize("language", ["c", "c++"])
def test_the_header_is_for_both_languages(language: str) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not on the PATH")
    standard = "c99" if language == "c" else "c++17"
    done = subprocess.run(
        [
            compiler, f"-std={standard}", "-Wall", "-Wextra", "-Werror", "-fsyntax-only",
            "-x", language, str(KERNELS / "grainrank_cuda.h"),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
