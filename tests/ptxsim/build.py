"""Compiles the runtime, and translated kernels against it. What was compiled before is kept."""

from __future__ import annotations

import functools
import getpass
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

from .errors import SimulatorError

CACHE_VARIABLE = "GRAINRANK_PTXSIM_CACHE"
_RUNTIME = Path(__file__).with_name("runtime")
_SOURCES = ("runtime.cpp", "fiber.cpp", "memory.cpp", "cooperation.cpp", "matrix.cpp")
_FLAGS = (
    "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-ffp-contract=off",
    "-fno-strict-aliasing", "-fwrapv",
)  # fmt: skip


# Most kernels run for less time than it takes to compile them.
_KERNEL_FLAGS = ("-O0", "-w")
_runtime_lock = threading.Lock()


def cache_folder() -> Path:
    """Where compiled code is kept: $GRAINRANK_PTXSIM_CACHE, or a folder of the user's own."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    shared = os.environ.get("XDG_CACHE_HOME")
    if shared:
        return Path(shared) / "grainrank-ptxsim"
    return Path(tempfile.gettempdir()) / f"grainrank-ptxsim-{getpass.getuser()}"


def compiler() -> str | None:
    """The path of g++, or None."""
    return shutil.which("g++")


def _machine_flags() -> tuple[str, ...]:
    return ("-march=x86-64-v3",) if platform.machine() == "x86_64" else ()


def _run(arguments: list[str]) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SimulatorError(f"{' '.join(arguments)} failed:\n{done.stderr[:2000]}")


def required_compiler() -> str:
    gxx = compiler()
    if gxx is None:
        raise SimulatorError("the simulator needs g++ to compile what it translates")
    return gxx


def _compile(arguments: list[str]) -> None:
    _run([required_compiler(), *_FLAGS, *_machine_flags(), *arguments])


@functools.cache
def _runtime_hash() -> str:
    digest = hashlib.sha256(repr((_FLAGS, _KERNEL_FLAGS, _machine_flags())).encode())
    for path in sorted(_RUNTIME.glob("*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def build_runtime(portable: bool = False) -> Path:
    """The runtime as a static library; with ucontext instead of assembly where `portable`."""
    with _runtime_lock:  # threads that compile kernels wait for one to compile what they share
        return _build_runtime(portable)


def _build_runtime(portable: bool) -> Path:
    library = cache_folder() / f"runtime-{_runtime_hash()}{'-portable' if portable else ''}.a"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        objects = []
        for name in _SOURCES:
            objects.append(f"{folder}/{name}.o")
            define = ["-DPTXSIM_UCONTEXT"] if portable else []
            _compile(["-O2", *define, "-c", str(_RUNTIME / name), "-o", objects[-1]])
        archive = f"{folder}/runtime.a"
        _run(["ar", "rcs", archive, *objects])
        os.replace(archive, library)
    return library


def _headers() -> Path:
    """A folder with the runtime's headers, parsed already: most of the time of a small kernel."""
    folder = cache_folder() / f"headers-{_runtime_hash()}"
    with _runtime_lock:
        return folder if folder.exists() else _build_headers(folder)


def _build_headers(folder: Path) -> Path:
    made = Path(tempfile.mkdtemp(dir=folder.parent))
    for path in _RUNTIME.glob("*.h"):
        shutil.copy(path, made)
    header = str(made / "runtime.h")
    _compile([*_KERNEL_FLAGS, "-x", "c++-header", header, "-o", f"{header}.gch"])
    try:
        made.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(made)
    return folder


def build(source: str, portable: bool = False) -> Path:
    """Compiles a translated module; returns the path of a shared library of its own."""
    runtime = build_runtime(portable)
    key = hashlib.sha256(f"{runtime.name}\n{source}".encode()).hexdigest()[:24]
    library = cache_folder() / f"kernel-{key}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        written = Path(folder) / "kernel.cpp"
        written.write_text(source)
        output = f"{folder}/kernel.so"
        include = ["-I", str(_headers())]
        _compile([*_KERNEL_FLAGS, "-shared", *include, str(written), str(runtime), "-o", output])
        os.replace(output, library)
    return library
