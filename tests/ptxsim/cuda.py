"""Builds CUDA sources, host code and kernels, into libraries that run without a GPU.

    library = ctypes.CDLL(str(build_library(Path("kernel.cu"))))
    module = build_module("_cuda", [Path("kernel.cu"), Path("bindings.cpp")])
    device = Device(module)
    device.register(array.ctypes.data, array.nbytes, "x")

Host code launches its kernels on the simulator; runtime/fakecudart.cpp says what takes the place of
the CUDA runtime.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from .build import _RUNTIME, _compile, _run, build_runtime, cache_folder, required_compiler
from .emission import Translation, translate_module
from .errors import SimulatorError
from .names import base_names

__all__ = ["Device", "Executed", "build_library", "build_module"]

_AT_ONCE = 2  # compilers
# No unique symbols: modules of one source, compiled for two capabilities, share no variables.
_HOST_FLAGS = ("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique")
_FAKE_RUNTIME = _RUNTIME / "fakecudart.cpp"


def _output(arguments: Sequence[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SimulatorError(f"{' '.join(arguments)} failed:\n{done.stderr[:2000]}")
    return done.stdout


def _headers(command: Sequence[str], source: Path) -> list[Path]:
    """The source and the headers that it includes, without those of the system."""
    rule = _output([*command, "-MM", str(source)])
    names = re.split(r"(?<!\\)\s+", rule.partition(":")[2].replace("\\\n", " ").strip())
    return [Path(name.replace("\\ ", " ")) for name in names]


@functools.cache
def _version(program: str) -> str:
    return _output([program, "--version"])


@functools.cache
def _translator_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if not path.name.startswith("test_"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _nvcc() -> str:
    program = shutil.which("nvcc")
    if program is None:
        raise SimulatorError("CUDA sources need nvcc on the PATH to be compiled")
    return program


@functools.cache
def _toolkit_include(nvcc: str) -> Path:
    for header in _headers([nvcc, "-x", "cu"], Path(os.devnull)):
        if header.name == "cuda_runtime.h":
            return header.parent
    raise SimulatorError(f"{nvcc} does not include cuda_runtime.h")


def _kernel_table(translation: Translation) -> str:
    """What an object registers with the CUDA runtime: its own kernels, whatever their names."""
    entries = "".join(
        f'{{"{kernel.name}", {kernel.entry_point}, {kernel.layout_table}}}, '
        for kernel in translation.kernels
    )
    return (
        'extern "C" void** __cudaRegisterFatBinary(void*) {\n'
        f"static const KernelEntry kernels[] = {{{entries}{{}}}};\n"
        "return (void**)kernels;\n"
        "}\n"
    )


def _compile_cuda(nvcc: list[str], source: Path, output: Path) -> None:
    """One object of the host code and the translated kernels.

    Kernels of several objects may have the same name, where they are static or templates: each
    object finds its own, by a __cudaRegisterFatBinary that no other object sees.
    """
    ptx, host, kernels, compiled = (
        output.with_name(name) for name in ("kernels.ptx", "host.o", "kernels.cpp", "kernels.o")
    )
    # The same path both times: the names of what is in anonymous namespaces hang on it.
    _run([*nvcc, "-lineinfo", "-ptx", str(source), "-o", str(ptx)])
    translation = translate_module(ptx.read_text())
    kernels.write_text(translation.source + _kernel_table(translation))
    _run([*nvcc, "-Xcompiler", "-fPIC,-fno-gnu-unique", "-c", str(source), "-o", str(host)])
    _compile([
        "-O1", "-w", "-DPTXSIM_ENTRY=static", "-I", str(_RUNTIME), "-c", str(kernels),
        "-o", str(compiled),
    ])  # fmt: skip
    _compile(["-r", "-nostdlib", str(host), str(compiled), "-o", str(output)])
    _run(["objcopy", "--localize-symbol=__cudaRegisterFatBinary", str(output)])


class _Compilers:
    """Compiles each source to an object; those compiled before are kept, by content."""

    def __init__(
        self,
        include: Sequence[Path],
        capability: int,
        flags: Sequence[str],
        host_include: Sequence[str] = (),
    ) -> None:
        nvcc = _nvcc()
        includes = [f"-I{path.resolve()}" for path in include]
        host_includes = [f"-I{path}" for path in host_include]
        self._nvcc = [
            nvcc, "-std=c++17", "-O3", f"-arch=compute_{capability}", "-cudart", "none", *includes,
            *flags,
        ]  # fmt: skip
        defines = [flag for flag in flags if flag.startswith(("-D", "-U"))]
        # Part of the name of what pybind11 shares between modules: here, with no other build.
        build = hashlib.sha256(repr((capability, *flags)).encode()).hexdigest()[:8]
        defines.append(f'-DPYBIND11_STDLIB="_ptxsim_{build}"')
        self._gxx = [required_compiler(), *_HOST_FLAGS, *includes, *host_includes, *defines]
        self._runtime = [self._gxx[0], *_HOST_FLAGS, f"-DPTXSIM_CAPABILITY={capability}"]

    def objects(self, sources: Sequence[Path]) -> list[Path]:
        """The objects of the sources and of the CUDA runtime."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(self._object, [*(s.resolve() for s in sources), _FAKE_RUNTIME]))

    def _object(self, source: Path) -> Path:
        translated = source.suffix == ".cu"
        if translated:
            command = self._nvcc
        else:
            command = self._runtime if source == _FAKE_RUNTIME else self._gxx
        # The lines that a fault names begin with the path of a kernel's source.
        parts = (str(source), build_runtime().name, _translator_hash()) if translated else ()
        digest = hashlib.sha256(repr((command, parts)).encode())
        digest.update(_version(command[0]).encode())
        for header in _headers(command, source):
            digest.update(header.read_bytes())
        kept = cache_folder() / f"object-{digest.hexdigest()[:24]}.o"
        if not kept.exists():
            with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
                output = Path(folder) / "object.o"
                if translated:
                    _compile_cuda(command, source, output)
                else:
                    _run([*command, "-c", str(source), "-o", str(output)])
                os.replace(output, kept)
        return kept


def _link(objects: Sequence[Path], options: Sequence[str]) -> Path:
    inputs = [*map(str, objects), str(build_runtime())]
    key = hashlib.sha256(repr((inputs, options)).encode()).hexdigest()[:24]
    library = cache_folder() / f"cuda-{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            output = Path(folder) / "library.so"
            _compile(["-shared", "-Wl,-Bsymbolic", *options, *inputs, "-o", str(output)])
            os.replace(output, library)
    return library


@functools.cache
def _load(name: str, path: Path) -> ModuleType:
    # pybind11 gives the module that it already has of a name, from whichever file.
    unique = f"{path.stem}.{name}"
    loader = ExtensionFileLoader(unique, str(path))
    spec = importlib.util.spec_from_file_location(unique, path, loader=loader)
    if spec is None:
        raise ImportError(f"no module {name} from {path}")
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    module.__name__ = name
    return module


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
    build_runtime()
    objects = _Compilers(include, capability, flags).objects([source])
    return _link(objects, ["-Wl,-z,defs"])


def build_module(
    name: str,
    sources: Sequence[Path],
    include: Sequence[Path] = (),
    capability: int = 80,
    flags: Sequence[str] = (),
) -> ModuleType:
    """Builds .cu files and .cpp files with pybind11 bindings into one module, and imports it.

    name: the module's; a .cpp file has PYBIND11_MODULE(<its last part>, ...). It is not put into
    sys.modules: builds for several capabilities, or with several flags, live side by side.
    include, capability, flags: as for build_library; g++ gets the -D and -U among the flags.
    Raises SimulatorError as build_library does, and ImportError where the module lacks a symbol,
    such as a function that runtime/fakecudart.cpp does not have.
    """
    for source in sources:
        if source.suffix not in (".cu", ".cpp"):
            raise ValueError(f"sources must end in .cu or .cpp, got {source.name}")
    import pybind11

    build_runtime()
    python = {sysconfig.get_path("include"), sysconfig.get_path("platinclude")}
    host_include = [pybind11.get_include(), *sorted(python), str(_toolkit_include(_nvcc()))]
    objects = _Compilers(include, capability, flags, host_include).objects(sources)
    return _load(name, _link(objects, []))


class Executed(NamedTuple):
    """What the launches of one kernel took."""

    instructions: int  #: of all threads; one that a predicate turns off counts
    threads: int  #: of a block, the most
    dynamic_shared: int  #: bytes of a block, the most


class Device:
    """What the host code of a built library or module takes for the GPU.

    Kernels may touch the memory that is registered here and that of cudaMalloc, nothing else.
    """

    def __init__(self, library: ModuleType | Path) -> None:
        path = library if isinstance(library, Path) else library.__file__
        calls = ctypes.CDLL(str(path))
        uint64, text = ctypes.c_uint64, ctypes.c_char_p
        calls.ptxsim_options.argtypes = (uint64, ctypes.c_int, ctypes.c_int)
        calls.ptxsim_register_buffer.argtypes = (uint64, uint64, ctypes.c_int, text)
        calls.ptxsim_traffic.argtypes = (text, ctypes.POINTER(uint64), ctypes.POINTER(uint64))
        calls.ptxsim_executed.argtypes = (
            ctypes.c_uint, ctypes.POINTER(text), ctypes.POINTER(uint64),
            ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(uint64),
        )  # fmt: skip
        calls.ptxsim_last_message.restype = text
        for function in (calls.ptxsim_options, calls.ptxsim_register_buffer):
            function.restype = None
        calls.ptxsim_clear_buffers.restype = None
        self._calls = calls
        self._names: set[str] = set()

    def options(self, seed: int = 0, races: bool = True, initialised: bool = True) -> None:
        """How the next launches run; see ptxsim.Options."""
        self._calls.ptxsim_options(seed, races, initialised)

    def register(self, address: int, nbytes: int, name: str, writable: bool = True) -> None:
        """Lets kernels touch this memory, in place of a buffer registered at the same address."""
        self._names.add(name)
        self._calls.ptxsim_register_buffer(address, nbytes, writable, name.encode())

    def clear(self) -> None:
        """Forgets the registered buffers, the traffic, what was executed, and what has failed."""
        self._names.clear()
        self._calls.ptxsim_clear_buffers()

    def message(self) -> str:
        """What the last failure was."""
        message: bytes = self._calls.ptxsim_last_message()
        return message.decode()

    def names(self) -> set[str]:
        """Of the buffers registered here since `clear`."""
        return set(self._names)

    def traffic(self, name: str) -> tuple[int, int]:
        """The bytes of global memory that threads have read and written, since `clear`, in the
        buffers of a name. An atomic operation reads and writes; cudaMalloc's are "cudaMalloc"."""
        read, written = ctypes.c_uint64(), ctypes.c_uint64()
        found = self._calls.ptxsim_traffic(name.encode(), ctypes.byref(read), ctypes.byref(written))
        if found != 0:
            raise KeyError(f"no buffer was registered as {name!r}")
        return read.value, written.value

    def executed(self) -> dict[str, Executed]:
        """What the kernels have executed since `clear`, by their names with template arguments."""
        found: list[tuple[str, Executed]] = []
        name, threads = ctypes.c_char_p(), ctypes.c_uint()
        instructions, dynamic_shared = ctypes.c_uint64(), ctypes.c_uint64()
        results = [ctypes.byref(x) for x in (name, instructions, threads, dynamic_shared)]
        while self._calls.ptxsim_executed(len(found), *results) == 0:
            here = Executed(instructions.value, threads.value, dynamic_shared.value)
            found.append(((name.value or b"").decode(), here))
        sums: dict[str, Executed] = {}
        for key, (_, here) in zip(base_names([name for name, _ in found]), found, strict=True):
            before = sums.get(key, Executed(0, 0, 0))
            sums[key] = Executed(
                before.instructions + here.instructions,
                max(before.threads, here.threads),
                max(before.dynamic_shared, here.dynamic_shared),
            )
        return sums

    def instructions(self) -> dict[str, int]:
        """Of all threads, by kernel, as `executed` has them."""
        return {name: kernel.instructions for name, kernel in self.executed().items()}
