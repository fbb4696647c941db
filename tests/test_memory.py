"""The matrix is never stored: every allocation of a step is looked at, and the process's peak."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from profiling import profiled
from torch.profiler import ProfilerActivity, profile

import grainrank
from grainrank import (
    DenseLevels,
    Diagonal,
    GrainKeys,
    LevelSource,
    SimilarityBands,
    SparseLevels,
    level_statistics,
    multi_level_ranking_loss,
    row_blocks,
)
from grainrank.batch import Batch

cpu = pytest.importorskip("grainrank.cpu")

N, D, K = 1500, 16, 3
WORKSPACE_MB = 0.5
MATRIX = N * N  # bytes, if a pair took one; the tables and inputs are far smaller


def allocations(run: Any) -> list[int]:
    """Bytes of every allocation that torch makes, frees as negative numbers, in order.

    With the workspace, which a step before may have left.
    """
    cpu._kept.clear()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    return [
        e.extra_fields.alloc_size
        for e in _walk(recorded.profiler.kineto_results.experimental_event_tree())
        if hasattr(e.extra_fields, "alloc_size")
    ]


def _walk(events: Any) -> Any:
    """All events of the tree, by start time."""
    stack, found = list(events), []
    while stack:
        event = stack.pop()
        found.append(event)
        stack.extend(event.children)
    return sorted(found, key=lambda event: event.start_time_ns)


def peak(sizes: list[int]) -> int:
    live = highest = 0
    for size in sizes:
        live += size
        highest = max(highest, live)
    return highest


def sources() -> dict[str, LevelSource | None]:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(0, 9, (N, K), generator=generator)
    ids = torch.arange(N)
    return {
        "diagonal": None,
        "prefix": GrainKeys(keys, keys),
        "count+exclude": GrainKeys(keys, keys, "count").exclude(ids, ids),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "none", "tables"])
@pytest.mark.parametrize("source", ["diagonal", "prefix", "count+exclude"])
def test_no_allocation_of_the_size_of_the_matrix(
    source: str, reduction: str, dtype: torch.dtype
) -> None:
    levels = sources()[source]
    generator = torch.Generator().manual_seed(1)
    q, c = (torch.randn(N, D, generator=generator, dtype=dtype).requires_grad_() for _ in range(2))

    def step() -> None:
        if reduction == "tables":
            tables = level_statistics(q, c, levels, temperature=0.1, workspace_mb=WORKSPACE_MB)
            tables.total.mean().backward()
            return
        multi_level_ranking_loss(
            q, c, levels, temperature=0.1, workspace_mb=WORKSPACE_MB, return_stats=True,
            reduction=reduction,
        )[0].sum().backward()  # fmt: skip

    step()
    q.grad = c.grad = None
    sizes = allocations(step)
    workspace = int(WORKSPACE_MB * 2**20)
    assert sizes, "the profiler saw nothing"
    assert any(size > 0.9 * workspace for size in sizes), "the workspace is among them"
    assert max(sizes) <= workspace
    assert workspace < MATRIX / 2
    # Candidates, both gradients, and 8 tables: all O(N (D + L)).
    assert peak(sizes) <= workspace + N * (4 * D + 40 * (K + 1)) * 4


def wide_sources() -> dict[str, Any]:
    """Made from O(N) data as well: inside the measurement."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(N, D, generator=generator)
    keys = torch.randint(0, 9, (N, K), generator=generator)
    ids = torch.arange(N)
    qrels = {(i, (7 * i) % N): 1 + i % 3 for i in range(N)}
    sparse = lambda: SparseLevels.from_qrels(range(N), range(N), qrels)  # noqa: E731
    return {
        "sparse": sparse,
        "bands": lambda: SimilarityBands(reference, reference, [0.2, 0.4]),
        "quantiles": lambda: SimilarityBands.from_quantiles(reference, reference, [0.9, 0.99]),
        "union": lambda: GrainKeys(keys, keys).exclude(ids, ids) | sparse(),
        "own margin": lambda: sparse().false_negative_margin(0.1),
        "reference margin": lambda: sparse().false_negative_margin(
            0.1, reference=(reference, reference), curated=(ids, ids)
        ),
    }


LOSSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "main": (grainrank.multi_level_ranking_loss, {"temperature": 0.1}),
    "clip": (grainrank.clip_loss, {"temperature": 0.1}),
    "prefixes": (grainrank.clip_loss, {"temperature": 0.1, "matryoshka_dims": (4, 8, 16)}),
    "joint": (
        grainrank.info_nce_loss,
        {"temperature": 0.1, "direction": "joint", "joint_blocks": ("candidate_query",)},
    ),
    "sup_con": (grainrank.sup_con_loss, {"temperature": 0.1}),
    "hard_negative_nce": (grainrank.hard_negative_nce_loss, {"temperature": 0.1}),
    "rince": (grainrank.rince_loss, {"temperature": 0.1, "form": "out-in"}),
    "hmlc": (grainrank.hmlc_loss, {"temperature": 0.1}),
    "csl": (grainrank.csl_loss, {"temperature": 0.1}),
    "pairwise": (grainrank.pairwise_ranking_loss, {"temperature": 0.1}),
    "cosent": (grainrank.cosent_loss, {"temperature": 0.1}),
    "list_net": (grainrank.list_net_loss, {"temperature": 0.1}),
    "softmax_ranking": (grainrank.softmax_ranking_loss, {"temperature": 0.1}),
    "unique_softmax": (grainrank.unique_softmax_loss, {"temperature": 0.1}),
    "circle": (grainrank.circle_loss, {}),
    "multi_similarity": (grainrank.multi_similarity_loss, {}),
    "siglip": (grainrank.siglip_loss, {"temperature": 0.1, "logit_bias": -5.0}),
}
CASES = [("main", name) for name in wide_sources()] + [(name, "sparse") for name in LOSSES]
CASES += [("clip", name) for name in wide_sources()]


@pytest.mark.parametrize(("loss", "source"), CASES)
def test_every_loss_and_source(loss: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grainrank.levels.bands._BLOCK", 2**15)
    function, options = LOSSES[loss]
    levels = wide_sources()[source]
    generator = torch.Generator().manual_seed(1)
    q, c = (torch.randn(N, D, generator=generator).requires_grad_() for _ in range(2))

    def step() -> None:
        function(q, c, levels(), workspace_mb=WORKSPACE_MB, **options).backward()

    step()
    q.grad = c.grad = None
    sizes = allocations(step)
    assert max(sizes) <= WORKSPACE_MB * 2**20
    # Prefixes, sides and the merged tables in double precision come on top: all O(N), and half of
    # what the matrix takes in float32.
    assert peak(sizes) <= 2 * MATRIX


@pytest.mark.parametrize(
    ("best", "own", "mib"),
    [
        ("avx512", None, 64),
        ("avx2", "f32", 64),
        ("avx512", "f32", 32),
        ("avx512_bf16", "bf16", 32),
        ("amx_bf16", "bf16", 32),
    ],
)
def test_the_default_block(
    best: str, own: str | None, mib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it where the products are the C++'s own with AVX-512 or AMX."""
    monkeypatch.setattr(cpu.CpuPasses, "_own_product", lambda _: own)
    x = torch.randn(4, 2)
    passes = cpu.CpuPasses(Batch(x, x, torch.tensor(1.0), Diagonal()), best)
    assert passes.block_bytes == mib * 2**20


@pytest.mark.parametrize(
    ("n", "columns", "rows"), [(64, 16384, 64), (1100, 16384, 550), (2300, 4096, 1150)]
)
def test_rows_of_the_default_block(n: int, columns: int, rows: int) -> None:
    """1024 at least; spread evenly over the blocks."""
    assert row_blocks.block_rows(n, 4 * columns, 0, 32 * 2**20) == rows


@pytest.mark.parametrize(
    ("columns", "rows"),
    [(4096, 4096), (8192, 2048), (16384, 2048), (32768, 2048), (50000, 1342), (131072, 1024)],
)
def test_rows_of_the_default_block_of_torchs_products(columns: int, rows: int) -> None:
    """2048 while they take 256 MiB at most, and of what two sweeps keep as well."""
    wanted = row_blocks.LARGE_DEFAULT_BLOCK
    assert row_blocks._default_rows(4 * columns, 64 * 2**20, wanted) == rows
    x = torch.empty(columns, 1)
    kept = row_blocks.kept_shape(Batch(x, x, torch.tensor(1.0), Diagonal()))
    assert kept == (1, rows, columns)


@pytest.mark.parametrize("columns", [0, 1, 70, 71, 700])
def test_torchs_products_of_many_columns_are_several(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_COLUMNS", 70)
    passes: Any = cpu.CpuPasses.__new__(cpu.CpuPasses)
    passes._product = None
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(9, 20, generator=generator)
    b = torch.randn(columns, 20, generator=generator).t()
    out = torch.full((9, columns + 2), torch.nan)
    found = profiled(lambda: passes.product_(out[:, :columns], a, b))
    torch.testing.assert_close(out[:, :columns], a @ b)
    assert bool(out[:, columns:].isnan().all()), "nothing is written beside it"
    assert found.multiplications == 9 * 20 * columns
    passes.product_(out[:, :columns], a, b, add=out[:, :columns])
    torch.testing.assert_close(out[:, :columns], 2 * (a @ b))


def test_queries_of_length_one_have_the_memory_of_their_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And are computed twice, piece by piece: the same bits as from memory of their own."""
    monkeypatch.setattr(cpu.CpuPasses, "_own_product", lambda _: None)
    generator = torch.Generator().manual_seed(1)
    q, c = torch.randn(2, 700, 40, generator=generator)
    q[3] = 0.0  # has no direction
    q.requires_grad_()
    c.requires_grad_()

    def step() -> tuple[torch.Tensor, ...]:
        loss = multi_level_ranking_loss(q, c, temperature=0.1)
        return torch.autograd.grad(loss, (q, c))

    found = step()
    sizes = allocations(step)
    monkeypatch.setattr(row_blocks.RowBlocks, "lend", lambda *_: None)
    expected = step()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert sizes.count(q.nbytes) == 3, "the candidates of length 1, and both gradients"
    assert allocations(step).count(q.nbytes) == 4


def test_one_workspace_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps use it again, in and out of inference mode; a larger one goes."""
    q, c = torch.randn(2, N, D, generator=torch.Generator().manual_seed(1))

    def loss(**options: Any) -> Any:
        return multi_level_ranking_loss(q, c, temperature=0.1, **options)

    with torch.inference_mode():
        expected = loss()
    (kept,) = cpu._kept
    assert kept.nbytes == N * N * 4
    q.requires_grad_()
    for _ in range(2):
        again = loss()
        again.backward()
        assert again == expected
    assert [t.data_ptr() for t in cpu._kept] == [kept.data_ptr()]
    assert loss(workspace_mb=0.1) == expected, "a part of it is enough"
    multi_level_ranking_loss(q.double(), c.double(), temperature=0.1)
    assert [t.dtype for t in cpu._kept] == [torch.float64]

    monkeypatch.setattr(cpu, "LARGEST_WORKSPACE", N * N * 4 - 1)
    loss()
    assert not cpu._kept


def test_two_sweeps_have_one_workspace() -> None:
    """From the forward to the backward, and for the next step, whether or not a backward came."""
    q, c = torch.randn(2, N, D, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def loss() -> Any:
        return grainrank.clip_loss(q, c, temperature=0.1)

    loss().backward()
    (kept,) = cpu._kept
    size = -(-N // 8) * 8
    assert kept.nbytes == N * size * 4
    for ends in ("backward", "never", "backward"):
        value = loss()
        assert not cpu._kept
        if ends == "backward":
            value.backward()
        else:
            del value
        assert [t.data_ptr() for t in cpu._kept] == [kept.data_ptr()]


def test_an_interrupted_sweep_gives_the_workspace_back() -> None:
    q = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    wrong = DenseLevels(torch.full((N, N), 3, dtype=torch.int8), max_level=2)
    with pytest.raises(ValueError, match="max_level"):
        multi_level_ranking_loss(q, q, wrong, temperature=0.1)
    gc.collect()
    assert len(cpu._kept) == 1


def test_the_reference_does_store_it() -> None:
    """So the measurement above would see it."""
    q = torch.randn(N, D, generator=torch.Generator().manual_seed(1)).requires_grad_()
    sizes = allocations(
        lambda: multi_level_ranking_loss(q, q, temperature=0.1, backend="reference").backward()
    )
    assert max(sizes) >= 4 * N * N


def test_dense_levels_are_not_widened() -> None:
    levels = DenseLevels(torch.zeros(N, N, dtype=torch.int8).fill_diagonal_(1), 1)
    q = torch.randn(N, D, generator=torch.Generator().manual_seed(1)).requires_grad_()
    sizes = allocations(
        lambda: multi_level_ranking_loss(
            q, q, levels, temperature=0.1, workspace_mb=WORKSPACE_MB
        ).backward()
    )
    assert max(sizes) <= WORKSPACE_MB * 2**20


CHILD = """
from pathlib import Path
import torch
from grainrank import GrainKeys, multi_level_ranking_loss

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(field + ":"))

def step(n):
    q, c = (torch.randn(n, 64, requires_grad=True) for _ in range(2))
    keys = torch.randint(0, 50, (n, 3))
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is resident
    before = status("VmRSS")
    levels = GrainKeys(keys, keys)
    multi_level_ranking_loss(q, c, levels, temperature=0.1, workspace_mb=8).backward()
    return status("VmHWM") - before

torch.set_num_threads(2)
step(256)
print(step(8192))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_of_the_process() -> None:
    """N = M = 8192: the matrix would take 256 MiB, what the step needs is about 8 + 6 * 2 MiB."""
    result = subprocess.run(
        [sys.executable, "-c", CHILD], check=True, capture_output=True, text=True
    )
    assert json.loads(result.stdout) < 64 * 2**20
