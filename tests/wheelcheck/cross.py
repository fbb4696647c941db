"""Compiles and links the C++ for systems that this one is not, with zig's clang.

Called by check.py; or `python tests/wheelcheck/cross.py FOLDER SDIST`. By CMake, as in a wheel, but
with the native test instead of the Python module, whose headers belong to a system. It runs where
there is an emulator. Before that the C++ is read as a compiler without the extensions of GNU and
clang, Microsoft's, would read it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import NamedTuple


class Target(NamedTuple):
    """A system and a processor."""

    zig: str
    system: str  # as CMake calls it
    processor: str
    emulator: str = ""  # Debian: packages qemu-user and libc6-arm64-cross, and wine


TARGETS = (
    Target("aarch64-linux-gnu.2.28", "Linux", "aarch64", "qemu-aarch64"),
    Target("aarch64-macos", "Darwin", "arm64"),
    Target("x86_64-windows-gnu", "Windows", "AMD64", "wine"),
)
AARCH64 = Path("/usr/aarch64-linux-gnu")  # its C library
# Identifiers that belong to the compiler, and that Microsoft's has too.
STANDARD = {"__cplusplus", "__func__", "__FILE__", "__LINE__", "__pragma", "__declspec"}


def fail(text: str) -> None:
    raise SystemExit(f"wheelcheck: {text}")


def output(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode != 0:
        fail(f"exit code {done.returncode} of {shlex.join(command)}\n{done.stdout}")
    return done.stdout


def program(folder: Path, *words: str) -> Path:
    """One that CMake can call; zig's have arguments."""
    path = folder / "-".join(words).replace("-target-", "-")
    path.write_text(
        f'#!/bin/sh\nexec {shlex.join([sys.executable, "-m", "ziglang", *words])} "$@"\n'
    )
    path.chmod(0o755)
    return path


def compiler(folder: Path, target: str) -> Path:
    return program(folder, "c++", "-target", target)


def emulation(target: Target, source: Path, folder: Path) -> list[str]:
    """What a program of the target is started with; [] where it cannot be."""
    emulator = shutil.which(target.emulator)
    if emulator is None or target.emulator == "wine":
        return [emulator] if emulator else []
    if not AARCH64.exists():
        return []
    library = folder / "one_thread.so"
    text = source / "tests" / "wheelcheck" / "one_thread.cpp"
    made = compiler(folder, target.zig)
    output([str(made), "-shared", "-fPIC", "-o", str(library), str(text)], folder)
    return [emulator, "-L", str(AARCH64), "-E", f"LD_PRELOAD={library}"]


def build(target: Target, source: Path, folder: Path) -> str:
    """What happened to the native test."""
    here = folder / target.zig
    emulator = emulation(target, source, folder)
    settings = {
        "CMAKE_SYSTEM_NAME": target.system,
        "CMAKE_SYSTEM_PROCESSOR": target.processor,
        "CMAKE_CXX_COMPILER": str(compiler(folder, target.zig)),
        "CMAKE_AR": str(program(folder, "ar")),
        "CMAKE_RANLIB": str(program(folder, "ranlib")),
        "CMAKE_CXX_FLAGS": "-Wall -Wextra -Werror",
        "CMAKE_OSX_SYSROOT": "",
        "CMAKE_CROSSCOMPILING_EMULATOR": ";".join(emulator),
        "GRAINRANK_CUDA": "OFF",
        "GRAINRANK_NATIVE_TESTS": "ON",
    }
    output(
        ["cmake", "-S", str(source), "-B", str(here), "-G", "Ninja",
         *(f"-D{name}={value}" for name, value in settings.items())],
        folder,
    )  # fmt: skip
    output(["cmake", "--build", str(here)], folder)
    if not emulator:
        return "compiled and linked, not run: no emulator"
    start = time.monotonic()
    output(["ctest", "--test-dir", str(here), "--output-on-failure", "--timeout", "7200"], folder)
    return f"native test passed under {target.emulator} ({time.monotonic() - start:.0f} s)"


def check_extensions(source: Path, folder: Path) -> str:
    """The scalar passes and what goes with them, without GNU's extensions; Windows has these."""
    csrc = source / "csrc"
    text = "\n".join(path.read_text() for path in csrc.iterdir())
    headers = set(re.findall(r"^#include <(\w+(?:\.h)?)>", text, re.MULTILINE))
    systems = {"dlfcn.h", "immintrin.h", "arm_neon.h"}
    lines = [f"#include <{name}>" for name in sorted(headers - systems)]
    undefined = ("__GNUC__", "__clang__", "__linux__", "__unix__")
    lines += [f"#undef {name}" for name in undefined]
    wrapper = folder / "extensions.cpp"
    sources = ("passes.cpp", "dispatch.cpp", "parallel.cpp")
    found: list[str] = []
    for name in sources:
        wrapper.write_text("\n".join([*lines, f'#include "{name}"', ""]))
        command = [
            os.environ.get("CXX", "c++"), "-std=c++17", "-pedantic-errors", "-I", str(csrc),
            "-DGRAINRANK_ISA=scalar", "-DGRAINRANK_VECTOR_BYTES=0", str(wrapper),
        ]  # fmt: skip
        output([*command, "-fsyntax-only"], folder)
        ours = False
        for line in output([*command, "-E"], folder).splitlines():
            marker = re.match(r'# \d+ "(.*)"', line)
            if marker:
                ours = marker[1].startswith(str(csrc))
            elif ours:
                found += sorted(set(re.findall(r"\b__\w+", line)) - STANDARD)
    if found:
        fail(f"Microsoft's compiler has no {', '.join(sorted(set(found)))}, which csrc/ uses")
    return f"none in {', '.join(sources)} as Windows compiles them"


def main(folder: Path, sdist: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    source = folder / sdist.name.removesuffix(".tar.gz")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    print(f"{'GNU extensions':<22} {check_extensions(source, folder)}", flush=True)
    for target in TARGETS:
        print(f"{target.zig:<22} {build(target, source, folder)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
