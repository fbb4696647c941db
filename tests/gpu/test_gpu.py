"""What the CPU's tests say of the backends "triton" and "cuda", on a GPU."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import test_accuracy_losses as losses
import torch
from levels_seen import seen
from rank_sweeps import TIES
from test_accuracy_losses import LOSSES, PAIRS, WAYS, evidence
from test_level_sources import integers, sources
from three_ways import judge
from torch import Tensor

import grainrank
from grainrank import GrainKeys, LevelSource, backends
from grainrank.levels import from_parts
from grainrank.testing import Inputs, Shape, make_inputs

each_backend = pytest.mark.parametrize("backend", ["triton", "cuda"])
PRODUCTS = [("triton", "fused"), ("triton", "vendor"), ("cuda", "auto")]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def step(
    name: str, way: str, inputs: Inputs, device: torch.device, **more: Any
) -> dict[str, Tensor]:
    there = Inputs(*(x.to(device) for x in inputs))
    results = losses.step(name, way, there, more.pop("backend", "triton"), **more)
    return {key: result.cpu() for key, result in results.items()}


@pytest.fixture(autouse=True)
def built(request: pytest.FixtureRequest, device: torch.device) -> None:
    callspec = getattr(request.node, "callspec", None)
    if callspec and callspec.params.get("backend") == "cuda" and device.type == "cuda":
        pytest.importorskip("grainrank._cuda", reason="grainrank was installed without CUDA")


@pytest.mark.parametrize(("backend", "product"), PRODUCTS)
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize(("name", "way"), PAIRS)
def test_loss(
    name: str, way: str, dtype: str, backend: str, product: str, device: torch.device
) -> None:
    if product == "fused" and way == "prefixes":
        pytest.skip("prefixes share a vendor product")
    inputs, reference, truth = evidence(name, way, DTYPES[dtype])
    actual = [step(name, way, x, device, backend=backend, product=product) for x in inputs]
    for result in actual[0]:
        judge(result, actual, reference, truth)


@each_backend
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("n", [1, 63, 64, 65])
@pytest.mark.parametrize("m", [1, 127, 128, 129, 1003])
def test_shape(n: int, m: int, dtype: str, backend: str, device: torch.device) -> None:
    inputs = make_inputs(Shape(n, m, 40, 3), DTYPES[dtype], seed=n + m)
    # Any row has a positive, if not of its finest grain.
    inputs.query_keys[:, 0] = inputs.candidate_keys[0, 0]
    loss = grainrank.multi_level_ranking_loss
    results = []
    for where, name in ((device, backend), (torch.device("cpu"), "reference")):
        q, c = (x.to(where).requires_grad_() for x in inputs[:2])
        levels = GrainKeys(inputs.query_keys.to(where), inputs.candidate_keys.to(where))
        value = loss(q, c, levels, temperature=0.2, backend=name, product="auto")  # type: ignore[arg-type]
        gradients = torch.autograd.grad(value, [q, c])
        results.append([x.detach().cpu().double() for x in (value, *gradients)])
    eps = 4 * torch.finfo(DTYPES[dtype]).eps
    for ours, expected in zip(*results, strict=True):
        assert (ours - expected).abs().max() <= eps * expected.abs().max() + 1e-7


def moved(levels: LevelSource, device: torch.device) -> LevelSource:
    return from_parts(levels.kind, [t.to(device) for t in levels.tensors])


@each_backend
@pytest.mark.parametrize("name", list(sources(2, 2)))
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_level_source(name: str, dtype: str, backend: str, device: torch.device) -> None:
    n, m = 67, 70
    source = sources(n, m)[name]
    expected = source.block(0, n, m).long()
    with torch.device(device):
        actual = seen(moved(source, device), backend, n, m, DTYPES[dtype])
    assert torch.equal(actual.cpu(), expected)


@each_backend
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_a_step_repeats_bit_by_bit(dtype: str, backend: str, device: torch.device) -> None:
    inputs = make_inputs(Shape(65, 700, 40, 3), DTYPES[dtype])
    runs = [step("sup_con", "symmetric", inputs, device, backend=backend) for _ in range(2)]
    first, second = runs
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.usefixtures("real")
def test_auto_takes_triton_and_says_so_once(
    device: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    backends._pick.cache_clear()
    inputs = make_inputs(Shape(5, 7, 8, 3), torch.bfloat16)
    with caplog.at_level(logging.INFO, logger="grainrank"):
        for _ in range(3):
            step("multi_level", "rows", inputs, device, backend="auto")
    assert [r.message for r in caplog.records] == ["backend: auto picked triton for cuda tensors"]


@pytest.mark.usefixtures("real")
@each_backend
@pytest.mark.parametrize(("name", "way"), [("multi_level", "rows"), ("info_nce", "symmetric")])
def test_graph_capture(name: str, way: str, backend: str, device: torch.device) -> None:
    """A step that is replayed on other embeddings gives what it gives when called."""
    loss, options = LOSSES[name]
    first, second = (make_inputs(Shape(128, 256, 64, 3), torch.bfloat16, seed=s) for s in (0, 1))
    q, c = (x.to(device).requires_grad_() for x in first[:2])
    levels = GrainKeys(first.query_keys.to(device), first.candidate_keys.to(device))

    def run() -> tuple[Tensor, ...]:
        value = loss(q, c, levels, backend=backend, **options, **WAYS[way])
        return value, *torch.autograd.grad(value, [q, c])

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        q.copy_(second.queries)
        c.copy_(second.candidates)
    graph.replay()
    for replayed, called in zip(captured, run(), strict=True):
        assert torch.equal(replayed, called)


@pytest.mark.usefixtures("real")
@each_backend
def test_memory_does_not_grow_with_the_matrix(backend: str, device: torch.device) -> None:
    n, d = 16384, 64
    q = torch.randn(n, d, dtype=torch.bfloat16, device=device, requires_grad=True)
    c = torch.randn(n, d, dtype=torch.bfloat16, device=device, requires_grad=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    grainrank.info_nce_loss(q, c, temperature=0.05, backend=backend).backward()  # type: ignore[arg-type]
    assert torch.cuda.max_memory_allocated() - before < n * n  # bytes: half of the matrix


@pytest.mark.usefixtures("real")
@each_backend
def test_tensors_need_not_be_on_the_current_device(backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    inputs = make_inputs(Shape(65, 130, 40, 3), torch.bfloat16)
    devices = [torch.device("cuda", i) for i in range(2)]
    first, second = (step("multi_level", "rows", inputs, d, backend=backend) for d in devices)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@each_backend
@pytest.mark.parametrize("name", list(sources(2, 2)))
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_ranks(dtype: str, name: str, backend: Any, device: torch.device) -> None:
    """Exact ones, of similarities that are exact, with many ties."""
    n, m = 65, 1003
    source = sources(n, m)[name]
    q, c = (integers(-1, 2, size, 8, seed=size).to(DTYPES[dtype]) / 2 for size in (n, m))
    there = [q.to(device), c.to(device), moved(source, device)]
    for ties in TIES:
        found = grainrank.positive_ranks(*there, ties=ties, normalize=False, backend=backend)
        expected = grainrank.positive_ranks(q, c, source, ties=ties, normalize=False)
        for x, y in zip(found, expected, strict=True):
            assert (x is y is None) or torch.equal(x.cpu(), y)


@each_backend
@pytest.mark.parametrize("surrogate", ["sigmoid", "upper_bound"])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_smooth_ranks(dtype: str, surrogate: Any, backend: Any, device: torch.device) -> None:
    inputs = make_inputs(Shape(9, 129, 40, 3), DTYPES[dtype], seed=1)
    levels = GrainKeys(inputs.query_keys, inputs.candidate_keys)
    results = []
    for where, dtype_of, name in (
        (device, DTYPES[dtype], backend),
        (torch.device("cpu"), torch.float64, "reference"),
    ):
        q, c = (x.to(where, dtype_of).requires_grad_() for x in inputs[:2])
        ranks = grainrank.positive_ranks(
            q, c, moved(levels, where), temperature=0.2, surrogate=surrogate, backend=name
        )
        gradients = torch.autograd.grad(ranks.by_row(ranks.rank.log()).sum(), [q, c])
        results.append([x.detach().cpu().double() for x in (ranks.above, *gradients)])
    eps = 32 * torch.finfo(DTYPES[dtype]).eps
    for ours, truth in zip(*results, strict=True):
        assert (ours - truth).abs().max() <= eps * truth.abs().max()
