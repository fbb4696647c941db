"""Faults planted in copies of the CUDA kernels and their launchers are found."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from compiled.simulated_cuda import KERNELS, ROOT

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
# id: file, what stands there, what is put in its place, what the simulator says.
FAULTS = {
    "nothing": ("tables.cu", "", "", ""),
    "no barrier behind the tile": (
        "tables.cu",
        "        __syncthreads();\n        tile.add_row(",
        "        tile.add_row(",
        "race|uninitialised",
    ),
    "no barrier before the next tile": (
        "tables.cu",
        "        __syncthreads();\n    }\n    const int64_t row",
        "    }\n    const int64_t row",
        "race",
    ),
    "too much shared memory": (
        "tables.cu",
        "constexpr size_t kSharedBytes = 48 << 10;",
        "constexpr size_t kSharedBytes = 96 << 10;",
        "invalid argument.* bytes of dynamic shared memory",
    ),
    "too many threads": (
        "tables.cu",
        "p.rows, p.shared_bytes, stream",
        "16 * p.rows, p.shared_bytes, stream",
        "invalid configuration argument.* a block must have 1 to 1024 threads",
    ),
    "more threads than the kernel was compiled for": (
        "tables.cu",
        "p.rows, p.shared_bytes, stream",
        "4 * p.rows, p.shared_bytes, stream",
        "its __launch_bounds__ are 256 threads",
    ),
    "workspace of one split": (
        "tables.cu",
        "const int64_t lines = p.splits * rows +",
        "const int64_t lines = rows +",
        "out-of-bounds global write",
    ),
    "parts over one another": (
        "tables.cu",
        "row_parts[(split * block.rows + row) * tile.levels + l]",
        "row_parts[row * tile.levels + l]",
        "race .* of another block",
    ),
    "no barrier behind the staged tables": (
        "gradients.cu",
        "    __syncthreads();\n}\n\n// The gradients of the logits",
        "}\n\n// The gradients of the logits",
        "race|uninitialised",
    ),
    "no barrier before the column moments": (
        "gradients.cu",
        "    __syncthreads();  // the tables are not needed any more\n",
        "",
        "race",
    ),
    "no barrier behind the column moments": (
        "gradients.cu",
        "shared[threadIdx.x * kVector + i] = sums[i];\n    __syncthreads();",
        "shared[threadIdx.x * kVector + i] = sums[i];",
        "race|uninitialised",
    ),
    "columns behind the last one": (
        "softplus.cu",
        "(split + 1) * kSplit : block.columns;",
        "(split + 1) * kSplit : block.columns + kWarp * kVector;",
        "race|out-of-bounds global read",  # what it reads, another warp may be writing
    ),
    "no fault of ranks": ("ranks.cu", "", "", ""),
    "splits of ranks over one another": (
        "ranks.cu",
        "(share.split * in.positives + share.positive) * levels + lane;",
        "share.positive * levels + lane;",
        "race .* of another block",
    ),
    "a positive above itself": (
        "ranks.cu",
        "column + i == share.column ? -1 : level[i];",
        "level[i];",
        "Tensor-likes are not close",
    ),
    "levels of the next row": (
        "ranks.cu",
        "levels + at.at(stride)) = out;",
        "levels + at.at(stride) + stride) = out;",
        "out-of-bounds global write",
    ),
    "no barrier behind the staged positives": (
        "rank_gradient.cu",
        "levels, first, here);\n        __syncthreads();",
        "levels, first, here);",
        "race|uninitialised",
    ),
    "no barrier before the next positives": (
        "rank_gradient.cu",
        "        __syncthreads();  // the ones before are not needed any more\n",
        "",
        "race",
    ),
}


# float64 takes half of the time to compile, and has the same code.
FLOAT64 = re.compile(r"    if \((block->)?dtype == GRAINRANK_F64\)\s*return[^;]*;\n")


def run(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    file, old, new, _ = FAULTS[name]
    text = (KERNELS / file).read_text()
    assert text.count(old) == 1 or not old, old
    planted = folder / re.sub(r"\W", "-", name) / file
    planted.parent.mkdir()
    planted.write_text(FLOAT64.sub("", text).replace(old, new, 1 if old else 0))
    command = [sys.executable, "-m", "compiled.planted_cuda", str(planted)]
    return subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """Of all faults that tests were selected for: two at a time."""
    items = [item for item in request.session.items if item.path == request.path]
    names = [item.callspec.params["name"] for item in items if isinstance(item, pytest.Function)]
    folder = tmp_path_factory.mktemp("planted")
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(run, name, folder) for name in names}


@pytest.mark.parametrize("name", list(FAULTS))
def test_fault(name: str, runs: dict[str, Future[subprocess.CompletedProcess[str]]]) -> None:
    done, expected = runs[name].result(), FAULTS[name][3]
    if not expected:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode != 0
        assert re.search(expected, done.stderr), done.stderr[-2000:]
