"""The products of the C++ against float64, and what they must not depend on."""

from __future__ import annotations

from typing import Any, Protocol

import pytest
import torch
from profiling import products_of_ours, profiled
from torch import Tensor

from grainrank import multi_level_ranking_loss
from grainrank.testing import Shape, make_inputs

cpu = pytest.importorskip("grainrank.cpu")
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
PRODUCTS = [
    (name, short)
    for name in cpu.instruction_sets()
    for short in DTYPES
    if getattr(cpu._native, f"has_product_{short}")(name)
]
pytestmark = pytest.mark.skipif(not PRODUCTS, reason="this machine has no product of ours")

# Around the tiles (4 x 24, 8 x 48, 32 x 32), the pieces of the depth (128, 256, 1024) and what is
# laid out at a time (of the depth 1024 or 2048, of such rows and columns 1024).
SIZES = [
    (1, 1, 1),
    (3, 5, 2),
    (8, 48, 2),
    (9, 49, 33),
    (17, 100, 47),
    (33, 47, 513),
    (64, 96, 96),
    (130, 300, 1025),
    (40, 64, 2048),
    (23, 65, 4099),
    (1100, 30, 2050),
    (20, 1100, 2050),
    (100, 16, 64),
    (0, 7, 5),
    (7, 0, 5),
]


def draw(
    dtype: torch.dtype, rows: int, columns: int, turned: bool, seed: int, apart: int = 0
) -> Tensor:
    """`[rows, columns]`, whose rows (turned: columns) lie `apart` numbers apart besides."""
    shape = (columns, rows) if turned else (rows, columns)
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(shape[0], shape[1] + apart, generator=generator).to(dtype)
    there = wide[:, : shape[1]]
    return there.t() if turned else there


class Product(Protocol):
    def __call__(self, out: Tensor, a: Tensor, b: Tensor, add: Tensor | None = None) -> None: ...


@pytest.fixture(params=PRODUCTS, ids="-".join)
def product(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[Product, torch.dtype]:
    name, short = request.param
    passes: Any = cpu.CpuPasses.__new__(cpu.CpuPasses)
    passes._set, passes._product = name, short
    monkeypatch.setattr(cpu, "_SMALL", 0)
    return passes.product_, DTYPES[short]


@pytest.mark.parametrize("turned", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_float64(
    product: tuple[Product, torch.dtype], size: tuple[int, int, int], turned: tuple[bool, bool]
) -> None:
    product_, dtype = product
    rows, columns, depth = size
    a, b = (
        draw(dtype, rows, depth, turned[0], 0, apart=3),
        draw(dtype, depth, columns, turned[1], 1, apart=8),
    )
    out = torch.full((rows, columns + 2), torch.nan)
    product_(out[:, :columns], a, b)
    expected = a.double() @ b.double()
    terms = a.double().abs() @ b.double().abs()
    error = (out[:, :columns].double() - expected).abs()
    assert bool((error <= 2.0**-22 * depth**0.5 * terms + 1e-30).all())
    assert bool(out[:, columns:].isnan().all())  # nothing is written beside it


def test_adds_to_what_is_there_or_to_another(product: tuple[Product, torch.dtype]) -> None:
    product_, dtype = product
    a, b = draw(dtype, 19, 70, False, 0), draw(dtype, 70, 51, True, 1)
    plain, start = torch.empty(19, 51), torch.randn(19, 51)
    product_(plain, a, b)
    onto, other = start.clone(), torch.full((19, 51), torch.nan)
    product_(onto, a, b, add=onto)
    product_(other, a, b, add=start)
    assert torch.equal(onto, start + plain)
    assert torch.equal(other, onto)


def test_nothing_to_add_up(product: tuple[Product, torch.dtype]) -> None:
    product_, dtype = product
    start = torch.randn(3, 4)
    out = start.clone()
    empty = torch.empty(3, 0, dtype=dtype), torch.empty(0, 4, dtype=dtype)
    product_(out, *empty, add=out)
    assert torch.equal(out, start)
    product_(out, *empty)
    assert torch.equal(out, torch.zeros(3, 4))


def test_same_bits_for_any_number_of_threads(product: tuple[Product, torch.dtype]) -> None:
    product_, dtype = product
    a, b = draw(dtype, 300, 2100, False, 0), draw(dtype, 2100, 500, False, 1)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(torch.empty(300, 500))
        product_(results[-1], a, b)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_stays_in_its_row_and_column(
    product: tuple[Product, torch.dtype], value: float
) -> None:
    product_, dtype = product
    a, b = draw(dtype, 20, 64, False, 0).clone(), draw(dtype, 64, 60, True, 1)
    a[7, 11] = value
    out = torch.empty(20, 60)
    product_(out, a, b)
    others = [i for i in range(20) if i != 7]
    assert not bool(out[7].isfinite().any())
    assert bool(out[others].isfinite().all())


@pytest.mark.skipif(not any(x[1] == "bf16" for x in PRODUCTS), reason="no product of bfloat16")
@pytest.mark.parametrize("faster", [False, True])
def test_a_step_in_bfloat16_widens_the_embeddings_only_where_that_is_faster(
    faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocations of a step of the size of the candidates in float32."""
    monkeypatch.setattr(cpu._native, "bf16_product_is_faster", lambda _: faster)
    inputs = make_inputs(Shape(512, 4096, 256), torch.bfloat16, seed=0)
    q, c = inputs.queries.requires_grad_(), inputs.candidates.requires_grad_()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        multi_level_ranking_loss(q, c, inputs.levels, temperature=0.1, backend="cpu").backward()
    made = ("aten::empty", "aten::empty_strided")
    sizes = [e.cpu_memory_usage for e in profile.events() if e.name in made]
    wide = 4096 * 256 * 4
    # The workspace and the gradient, and the copy.
    assert sum(size >= wide for size in sizes) == (2 if faster else 3)
    assert c.grad is not None


@pytest.mark.parametrize("d", [31, 32])
@pytest.mark.parametrize("faster", [False, True])
def test_a_step_multiplies_with_what_is_faster(
    faster: bool, d: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The products of float32 are those of PyTorch, or ours unless they are small."""
    native = cpu._native
    if not native.has_product_f32(cpu.instruction_sets()[0]):
        pytest.skip("this machine has no product of float32 of ours")
    monkeypatch.setattr(native, "float32_product_is_faster", lambda _: faster)
    inputs = make_inputs(Shape(40, 60, d), torch.float32, seed=0)
    step = {"levels": inputs.levels, "temperature": 0.1}
    loss, expected = (
        multi_level_ranking_loss(inputs.queries, inputs.candidates, backend=backend, **step)  # type: ignore[arg-type]
        for backend in ("cpu", "reference")
    )
    torch.testing.assert_close(loss, expected)
    q, c = inputs.queries.clone().requires_grad_(), inputs.candidates.clone().requires_grad_()
    with products_of_ours() as ours:
        found = profiled(lambda: multi_level_ranking_loss(q, c, backend="cpu", **step).backward())  # type: ignore[arg-type]
    assert found.products(40, 60, d) == 3
    assert len(ours) == (3 if faster and d == 32 else 0)
