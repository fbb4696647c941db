"""The compiled code of every kernel, in the rule of accuracy, with all checks of the simulator on.

Shapes lie on both sides of the edge of a tile; the threads run in several orders.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from levels_seen import seen
from lone_pairs import lone_pairs
from ptxsim.driver import use
from test_accuracy_losses import evidence, step
from test_level_sources import sources
from three_ways import judge

from grainrank.testing import Shape, make_inputs

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CAPABILITIES = [80, 90]
SEEDS = [0, 1, 2, 3]  # orders of the threads and of the copies
ROWS, COLUMNS, FEATURES = 64, 128, 64  # of the widest tile
EDGES = [
    Shape(ROWS - 1, COLUMNS - 1, FEATURES - 1, 3),
    Shape(ROWS, COLUMNS, FEATURES, 3),
    Shape(ROWS + 1, COLUMNS + 1, FEATURES + 1, 3),
]
SMALL = Shape(33, 65, 24, 3)
# Losses that between them use every kernel in every form.
FORMS = [
    ("info_nce", "symmetric"),  # column tables
    ("pairwise", "symmetric"),  # tables of every kind
    ("circle", "rows"),
    ("multi_similarity", "rows"),  # factors of the levels
    ("multi_level-temperatures", "rows"),  # several channels
    ("unique_softmax", "rows"),  # softplus sums of positives
    ("siglip", "rows"),  # softplus sums of all, and their gradient
]
PREFIXES = [("multi_level-temperatures", "prefixes"), ("sup_con", "prefixes")]


def check(
    name: str, way: str, shape: Shape, dtype: torch.dtype, capability: int, product: str
) -> None:
    inputs, reference, truth = evidence(name, way, dtype, shape, len(SEEDS))
    actual = []
    for seed, x in zip(SEEDS, inputs, strict=True):
        with use(capability, seed=seed):
            actual.append(step(name, way, x, "triton", product=product))
    for result in actual[0]:
        judge(result, actual, reference, truth)


@pytest.mark.parametrize("shape", EDGES, ids=lambda s: f"N{s.N}-M{s.M}-D{s.D}")
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_edges(shape: Shape, dtype: str, capability: int) -> None:
    check("multi_level", "rows", shape, DTYPES[dtype], capability, "fused")


@pytest.mark.parametrize(("name", "way"), FORMS)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_fused(name: str, way: str, capability: int) -> None:
    check(name, way, SMALL, torch.bfloat16, capability, "fused")


@pytest.mark.parametrize(("name", "way"), FORMS[:2] + FORMS[-2:])
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_fused_in_other_dtypes(name: str, way: str, dtype: str) -> None:
    check(name, way, SMALL, DTYPES[dtype], 80, "fused")


@pytest.mark.parametrize(("name", "way"), FORMS + PREFIXES)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_vendor(name: str, way: str, capability: int) -> None:
    check(name, way, SMALL, torch.float32, capability, "vendor")


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize(("name", "way"), [FORMS[0], PREFIXES[0]])
def test_vendor_in_half_precision(name: str, way: str, dtype: str) -> None:
    check(name, way, SMALL, DTYPES[dtype], 80, "vendor")


@pytest.fixture
def tf32() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    yield
    matmul.fp32_precision = before


@pytest.mark.usefixtures("tf32")
def test_tf32() -> None:
    """Only where PyTorch was allowed to; its eps is 2^-10, that of float16."""
    inputs = make_inputs(SMALL, torch.float32, seed=5)
    expected = step("multi_level", "rows", inputs, "reference")
    for capability in CAPABILITIES:
        with use(capability, seed=capability):
            actual = step("multi_level", "rows", inputs, "triton")
        for name, value in actual.items():
            error = (value - expected[name]).abs().max()
            bound = 2 * torch.finfo(torch.float16).eps * expected[name].abs().max()
            assert 1e-6 * expected[name].abs().max() < error < bound, name


@pytest.mark.parametrize("name", list(sources(2, 2)))
def test_level_source(name: str) -> None:
    n, m = ROWS + 1, COLUMNS // 2 + 1
    source = sources(n, m)[name]
    expected = source.block(0, n, m).long()
    with use(80, seed=1):
        assert torch.equal(seen(source, "triton", n, m), expected)
    with use(90, seed=2):
        assert torch.equal(seen(source, "triton", n, m, torch.float16), expected)


@pytest.mark.parametrize("negative", [False, True], ids=["lse", "neg_lse"])
@pytest.mark.parametrize("level_scales", [None, [1.0, 0.3, 1.7]], ids=["plain", "factors"])
def test_a_pair_alone_at_its_level(level_scales: list[float] | None, negative: bool) -> None:
    with use(80, seed=1):
        torch.testing.assert_close(*lone_pairs("triton", level_scales, negative))
