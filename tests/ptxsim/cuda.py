"""Builds a CUDA source, host code and kernels, into a library that runs without a GPU.

    library = ctypes.CDLL(str(build_library(Path("kernel.cu"))))

Its functions with C linkage may be called by ctypes, and launch their kernels on the simulator;
runtime/fakecudart.cpp says what takes the place of the CUDA runtime.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .build import _RUNTIME, _compile, _run, build_runtime, cache_folder
from .emission import translate_module
from .errors import SimulatorError

__all__ = ["build_library"]


def _output(arguments: list[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SimulatorError(f"{' '.join(arguments)} failed:\n{done.stderr[:2000]}")
    return done.stdout


def _key(nvcc: list[str], source: Path, parts: Sequence[str]) -> str:
    """A hash of the compiler, its options, the source and the headers outside the system."""
    digest = hashlib.sha256(repr((nvcc, str(source), *parts)).encode())
    digest.update(_output([nvcc[0], "--version"]).encode())
    rule = _output([*nvcc, "-MM", str(source)])
    for name in re.split(r"(?<!\\)\s+", rule.partition(":")[2].replace("\\\n", " ").strip()):
        digest.update(Path(name.replace("\\ ", " ")).read_bytes())
    return digest.hexdigest()[:24]


def build_library(
    source: Path,
    include: Sequence[Path] = (),
    capability: int = 80,
    flags: Sequence[str] = (),
) -> Path:
    """Compiles a .cu file with nvcc and its kernels by the simulator; returns a shared library.

    capability: what the code is compiled for, 80 for sm_80. flags: more options of nvcc.
    Raises SimulatorError where a compiler fails or an instruction is not simulated.
    """
    program = shutil.which("nvcc")
    if program is None:
        raise SimulatorError("CUDA sources need nvcc on the PATH to be compiled")
    runtime = build_runtime()
    includes = [f"-I{path.resolve()}" for path in include]
    nvcc = [
        program, "-std=c++17", "-O3", f"-arch=compute_{capability}", "-cudart", "none", *includes,
        *flags,
    ]  # fmt: skip
    source = source.resolve()
    library = cache_folder() / f"cuda-{_key(nvcc, source, [runtime.name])}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        ptx, host, kernels, output = (
            Path(folder) / name for name in ("kernels.ptx", "host.o", "kernels.cpp", "library.so")
        )
        # The same path both times: the names of what is in anonymous namespaces hang on it.
        _run([*nvcc, "-lineinfo", "-ptx", str(source), "-o", str(ptx)])
        kernels.write_text(translate_module(ptx.read_text()).source)
        _run([*nvcc, "-Xcompiler", "-fPIC", "-c", str(source), "-o", str(host)])
        _compile([
            "-O1", "-w", "-shared", "-Wl,-Bsymbolic", "-Wl,-z,defs",
            f"-DPTXSIM_CAPABILITY={capability}", "-I", str(_RUNTIME), str(kernels),
            str(_RUNTIME / "fakecudart.cpp"), str(host), str(runtime), "-ldl", "-o", str(output),
        ])  # fmt: skip
        os.replace(output, library)
    return library
