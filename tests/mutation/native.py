"""grainrank._native for the tests of a copy of the project: objects are kept, by content.

A quarter of the time of CMake's build: of the instruction sets this machine's best one is built,
and the plain one, which stays that of the first build.
"""

from __future__ import annotations

import functools
import hashlib
import subprocess
import sysconfig
from pathlib import Path

import pybind11

GXX = "g++"
# -O1 with the pass that fuses multiply-adds, without which equal embeddings do not tie.
FLAGS = (
    "-std=c++17", "-O1", "-fexpensive-optimizations", "-fPIC", "-fvisibility=hidden",
    "-ffp-contract=fast", "-Wno-psabi", "-DNDEBUG",
)  # fmt: skip
# By a macro of the compiler for this machine, the best first: name, bytes of a vector, flags.
_AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma"
SETS = {
    "__AVX512VL__": ("avx512", 64, _AVX512),
    "__AVX2__": ("avx2", 32, "-mavx2 -mfma"),
    "__ARM_NEON": ("neon", 16, ""),
}
BF16, AMX = "__AVX512BF16__", "__AMX_BF16__"


def _output(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(f"{' '.join(map(str, command))} failed:\n{done.stderr[:3000]}")
    return done.stdout


@functools.cache
def macros() -> frozenset[str]:
    """What the compiler defines for this machine."""
    text = _output(GXX, "-march=native", "-dM", "-E", "-x", "c++", "/dev/null")
    return frozenset(line.split()[1] for line in text.splitlines())


def instruction_set() -> str:
    """The one that mutants are compiled for."""
    return next((name for macro, (name, *_) in SETS.items() if macro in macros()), "scalar")


def _object(source: Path, flags: list[str], folder: Path) -> Path:
    command = [GXX, *FLAGS, *flags]
    rule = _output(*command, "-MM", source).partition(":")[2].replace("\\\n", " ")
    digest = hashlib.sha256(repr(command[1:-1]).encode())
    for path in rule.split():
        digest.update(Path(path).read_bytes())
    kept = folder / f"{source.stem}-{digest.hexdigest()[:20]}.o"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = kept.with_suffix(".new")
        _output(*command, "-c", source, "-o", made)
        made.rename(kept)
    return kept


def _passes(
    csrc: Path, objects: Path, name: str, size: int, flags: str, source: str = "passes.cpp"
) -> Path:
    own = [f"-DGRAINRANK_ISA={name}", f"-DGRAINRANK_VECTOR_BYTES={size}", *flags.split()]
    return _object(csrc / source, [*own, f"-I{csrc}"], objects)


_first_passes = functools.cache(_passes)


def build(project: Path, objects: Path) -> None:
    """The module of a copy of the project, in its package."""
    csrc, package = project / "csrc", project / "python" / "grainrank"
    python = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
    best = next((SETS[macro] for macro in SETS if macro in macros()), None)
    plain = _first_passes if best else _passes
    linked, has = [plain(csrc, objects, "scalar", 0, "")], []
    if best:
        linked.append(_passes(csrc, objects, *best))
        has.append(f"-DGRAINRANK_HAS_{best[0].upper()}=1")
        if best[0] != "neon":
            linked.append(_passes(csrc, objects, *best, source="float32_product.cpp"))
    if BF16 in macros():
        flags = [*_AVX512.split(), "-mavx512bf16", "-DGRAINRANK_ISA=avx512_bf16", f"-I{csrc}"]
        has.append("-DGRAINRANK_HAS_AVX512_BF16=1")
        if AMX in macros():
            has.append("-DGRAINRANK_HAS_AMX_BF16=1")
            flags += ["-mamx-tile", "-mamx-bf16", has[-1]]
        linked.append(_object(csrc / "bf16_product.cpp", flags, objects))
    linked.append(_object(csrc / "parallel.cpp", [f"-I{csrc}"], objects))
    for name in ("dispatch.cpp", "bindings.cpp"):
        linked.append(_object(csrc / name, [*has, *python, f"-I{csrc}"], objects))
    module = package / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    _output(GXX, "-shared", *linked, "-ldl", "-lpthread", "-o", module)
