"""What a loss takes and leaves: memory, threads, processes, signals, ways of PyTorch to run it."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from profiling import profiled
from torch import Tensor, nn

import grainrank
from grainrank import GrainKeys, MultiLevelRankingLoss, multi_level_ranking_loss
from grainrank.testing import Shape, make_inputs

cpu = pytest.importorskip("grainrank.cpu")


def step(seed: int = 0, n: int = 70, m: int = 130, **options: Any) -> tuple[Tensor, ...]:
    """Loss and gradients."""
    inputs = make_inputs(Shape(n, m, 16, 2), torch.float32, seed=seed)
    q, c = inputs.queries.requires_grad_(), inputs.candidates.requires_grad_()
    loss: Tensor = multi_level_ranking_loss(
        q, c, inputs.levels, temperature=0.1, backend="cpu", **options
    )
    loss.backward()
    assert q.grad is not None
    assert c.grad is not None
    return loss.detach(), q.grad, c.grad


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


def test_threads_of_python_do_not_disturb_each_other() -> None:
    """Steps of different sizes at once: each gives what it gives alone."""
    sizes = [(i, 20 + 31 * (i % 5), 50 + 77 * (i % 3)) for i in range(24)]
    alone = [step(*size) for size in sizes]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda size: step(*size), sizes))
    for actual, expected in zip(together, alone, strict=True):
        assert_same(actual, expected)


def in_a_process(code: str, **options: Any) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parent,
        **options,
    ).stdout


FORKED = """
import os, signal, torch
from test_resources import assert_same, step
torch.set_num_threads(2)
expected = step()
child = os.fork()
if child == 0:
    signal.alarm(60)  # a deadlock ends
    torch.set_num_threads(1)  # as DataLoader's workers do: torch itself hangs with more
    assert_same(step(), expected)
    os._exit(0)
print(os.waitpid(child, 0)[1])
assert_same(step(), expected)
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_a_forked_process_goes_on() -> None:
    assert in_a_process(FORKED).strip() == "0"


INTERRUPTED = """
import os, signal, threading, torch
from grainrank import cpu, multi_level_ranking_loss
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by a job in the background
q = torch.randn(4096, 8, requires_grad=True)
blocks = []
tables = cpu.CpuPasses.tables
def counted(self, block, *rest):
    blocks.append(block.start)
    if len(blocks) == 3:
        os.kill(os.getpid(), signal.SIGINT)
    tables(self, block, *rest)
cpu.CpuPasses.tables = counted
try:
    multi_level_ranking_loss(q, q, temperature=0.1, backend="cpu", workspace_mb=2)
except KeyboardInterrupt:
    print(len(blocks), len(cpu._kept))
"""


def test_ctrl_c_ends_a_step_within_a_row_block() -> None:
    """And the workspace is given back: 32 blocks of 128 rows, interrupted in the third."""
    assert in_a_process(INTERRUPTED).split() == ["3", "1"]


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_number_of_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    actual = step()
    torch.set_num_threads(2)
    for a, e in zip(actual, step(), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_autograd(mode: Callable[[], Any]) -> None:
    expected = step()
    with mode():
        inputs = make_inputs(Shape(70, 130, 16, 2), torch.float32, seed=0)
        loss = multi_level_ranking_loss(
            inputs.queries, inputs.candidates, inputs.levels, temperature=0.1, backend="cpu"
        )
    assert torch.equal(loss, expected[0])
    assert_same(step(), expected)  # the workspace that was kept serves a step with gradients


@pytest.mark.parametrize("make", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("name", sorted(n for n in grainrank.__all__ if n.endswith("Loss")))
def test_modules_are_copied_and_pickled(name: str, make: Callable[[Any], Any]) -> None:
    cls = getattr(grainrank, name)
    options: dict[str, Any] = {"temperature": 0.1}
    if name == "SigLipLoss":
        options = {"logit_scale": 10.0, "logit_bias": -10.0}
    try:
        module = cls(**options)
    except TypeError:
        module = cls()
    assert repr(make(module)) == repr(module)


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Linear(8, 8)
        self.loss = MultiLevelRankingLoss(temperature=0.1, backend="cpu")

    def forward(self, q: Tensor, c: Tensor, keys: Tensor) -> Tensor:
        loss: Tensor = self.loss(self.tower(q), self.tower(c), GrainKeys(keys, keys))
        return loss


def test_torch_export() -> None:
    """The exported program holds the operator, and is saved and loaded with it."""
    generator = torch.Generator().manual_seed(0)
    towers = Towers()
    given = (
        torch.randn(6, 8, generator=generator),
        torch.randn(6, 8, generator=generator),
        torch.arange(6)[:, None] % 2,
    )
    program = torch.export.export(towers, given)
    assert any("grainrank" in str(node.target) for node in program.graph.nodes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    assert torch.equal(loaded(*given), towers(*given))


SHAPES = [(1, 4000), (300, 3), (257, 1500), (900, 901)]
OPTIONS: dict[str, dict[str, Any]] = {
    "rows": {},
    "none": {"reduction": "none"},
    "symmetric": {"direction": "symmetric"},
    "prefixes": {"matryoshka_dims": (4, 16)},
    "temperatures": {"level_temperatures": [0.2, 0.1]},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_memory_stays_within_the_bound(
    name: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """Workspace, tables and gradients."""
    workspace = 0.25
    (n, m), d, levels = shape, 16, 3
    inputs = make_inputs(Shape(n, m, d, 2), dtype, seed=0)
    q, c = inputs.queries.requires_grad_(), inputs.candidates.requires_grad_()

    def run() -> None:
        options = {"temperature": 0.1, **OPTIONS[name]}
        if "level_temperatures" in options:
            del options["temperature"]
        loss = multi_level_ranking_loss(
            q, c, inputs.levels, backend="cpu", workspace_mb=workspace, **options
        )
        loss.sum().backward()

    rows = (n + m) * 4 * (6 * d + 80 * levels)
    cpu._kept.clear()
    assert profiled(run).peak <= workspace * 2**20 + rows + 2**16


@pytest.mark.stress
def test_ten_thousand_calls_leave_nothing() -> None:
    """Resident memory after 10,000 steps is what it was after 1,000."""

    def resident() -> int:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096

    torch.set_num_threads(1)
    kinds: list[dict[str, Any]] = [{}, {"reduction": "sum"}, {"direction": "symmetric"}]
    for _ in range(1000):
        for options in kinds:
            step(n=8, m=9, **options)
    before = resident()
    for _ in range(9000 // len(kinds)):
        for options in kinds:
            step(n=8, m=9, **options)
    assert resident() - before < 2 * 2**20
