"""Faults planted in copies of the kernels, and in what the compiler made of them, are found."""

from __future__ import annotations

import importlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from ptxsim import SimulatorError
from ptxsim.driver import use
from rank_sweeps import STEPS, smooth
from test_accuracy_losses import step
from test_triton_ranks import case, graded

from grainrank import triton_passes, triton_ranks
from grainrank.testing import Shape, make_inputs

KERNELS = Path(triton_passes.level_tables.fn.__code__.co_filename).parent
NAMES = {
    "tables": ("level_tables", "merge_tables"),
    "gradients": ("gradient_block", "softplus_sums"),
    "rows": ("row_norms", "finish_rows"),
    "ranks": ("block_levels", "rank_sums", "rank_gradient"),
}
TALL, SHORT = Shape(65, 65, 24, 3), Shape(3, 300, 24, 3)  # several row tiles; split columns


def run(shape: Shape, capability: int = 80, edit: Callable[[str], str] | None = None) -> None:
    inputs = make_inputs(shape, torch.bfloat16)
    expected = step("info_nce", "symmetric", inputs, "reference")
    with use(capability, seed=1, edit=edit):
        actual = step("info_nce", "symmetric", inputs, "triton", product="fused")
    for name, value in actual.items():
        torch.testing.assert_close(value, expected[name], rtol=0.05, atol=1e-4)


def planted(file: str, old: str, new: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The passes use a copy of the kernels with one line changed."""
    package = folder / f"planted_{folder.name}"
    shutil.copytree(KERNELS, package, ignore=shutil.ignore_patterns("__pycache__", "*.md"))
    text = (package / file).read_text()
    assert text.count(old) == 1, old
    (package / file).write_text(text.replace(old, new))
    monkeypatch.syspath_prepend(folder)
    for module_name, kernels in NAMES.items():
        module: ModuleType = importlib.import_module(f"{package.name}.{module_name}")
        owner = triton_ranks if module_name == "ranks" else triton_passes
        for kernel in kernels:
            monkeypatch.setattr(owner, kernel, getattr(module, kernel))


@pytest.mark.parametrize(
    ("file", "old", "new", "shape", "message"),
    [
        (
            "tiles.py",
            "mask=inside[:, None] & in_columns[None, :], other=0.0)\n        s = tl.dot",
            "mask=inside[:, None], other=0.0)\n        s = tl.dot",
            TALL,
            "out-of-bounds global read .* of buffer 'operands",
        ),
        (
            "tiles.py",
            "    mask = in_rows[:, None] & in_columns[None, :]\n    tl.store",
            "    mask = in_rows[:, None]\n    tl.store",
            TALL,
            "race|out-of-bounds global write",
        ),
        (
            "tables.py",
            "lines = tl.program_id(0).to(tl.int64) * table_columns + columns",
            "lines = columns",
            TALL,
            "write-write race .* of another block",
        ),
        (
            "tables.py",
            "_store(row_parts, so_far, split * R + block_rows, in_rows, LEVELS)",
            "_store(row_parts, so_far, block_rows, in_rows, LEVELS)",
            SHORT,
            "write-write race .* of another block",
        ),
        (
            "tables.py",
            "inside = mask[:, None] & (levels < LEVELS)[None, :]",
            "inside = mask[:, None] & (levels >= 0)[None, :]",
            Shape(65, 65, 24, 2),  # three levels, of four lanes
            "race|out-of-bounds",
        ),
    ],
    ids=["read", "write", "column parts", "row parts", "lanes"],
)
def test_fault_in_a_kernel(
    file: str,
    old: str,
    new: str,
    shape: Shape,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planted(file, old, new, tmp_path, monkeypatch)
    with pytest.raises(SimulatorError, match=message):
        run(shape)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "at = (split * P + p) * LEVELS + group",
            "at = p * LEVELS + group",
            "write-write race .* of another block",
        ),
        ("mask = group < LEVELS", "mask = group >= 0", "race|out-of-bounds"),
        (
            "tl.load(at, mask=in_columns[None, :], other=-1)",
            "tl.load(at)",
            "out-of-bounds global read .* of buffer 'levels'",
        ),
        (
            "tl.store(at, level.to(tl.int8), mask=in_rows[:, None] & in_columns[None, :])",
            "tl.store(at, level.to(tl.int8), mask=in_rows[:, None])",
            "race|out-of-bounds global write",
        ),
    ],
    ids=["parts", "lanes", "read", "write"],
)
def test_fault_in_a_kernel_of_ranks(
    old: str, new: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = case(3, 600, torch.float32, graded(3, 600, 2))  # three levels, of four lanes
    planted("ranks.py", old, new, tmp_path, monkeypatch)
    with pytest.raises(SimulatorError, match=message), use(80, seed=1):
        smooth(given, triton_ranks.TritonRankPasses, STEPS["sigmoid"])


def test_fewer_features_than_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that hold the same feature: one writes over what another has yet to read."""
    monkeypatch.setattr(triton_passes, "_features", lambda prefixes: 32)
    with pytest.raises(SimulatorError, match="race"):
        run(TALL)


def swap_registers(ptx: str) -> str:
    """Two rows of every fragment of the first factor are exchanged."""
    pattern = r"(mma\.sync\.[^{]*\{[^}]*\}, \{) (%\w+), (%\w+), "
    return re.sub(pattern, r"\1 \3, \2, ", ptx)


def another_swizzle(ptx: str) -> str:
    """Descriptors of shared memory name another order of its banks."""

    def turned(match: re.Match[str]) -> str:
        word = int(match[0])
        return str(word ^ (3 << 62)) if word >> 62 in (1, 2) else match[0]

    return re.sub(r"\b\d{18,20}\b", turned, ptx)


@pytest.mark.parametrize(
    ("capability", "edit"), [(80, swap_registers), (90, another_swizzle)], ids=["mma", "wgmma"]
)
def test_fault_of_layout(capability: int, edit: Callable[[str], str]) -> None:
    edited: list[bool] = []

    def watched(ptx: str) -> str:
        edited.append(edit(ptx) != ptx)
        return edit(ptx)

    with pytest.raises((AssertionError, SimulatorError)):
        run(TALL, capability, watched)
    assert any(edited)
