"""The Triton backend in Triton's interpreter, on CPU tensors: what the kernels' source says.

What the compiler makes of it is tested in tests/compiled/.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from levels_seen import seen
from loss_step import loss_step
from margins import each_margin, margin_step
from test_accuracy_losses import LOSSES, SHAPE, evidence, step
from test_level_sources import sources
from three_ways import LossOptions, judge, table_step
from three_ways import table_upstream as upstreams
from torch.utils._python_dispatch import TorchDispatchMode

import grainrank
from grainrank import backends, info_nce_loss, level_statistics, ops
from grainrank.testing import Shape, make_inputs

triton = pytest.importorskip("triton", reason="Triton is not installed")
triton_launch = pytest.importorskip("grainrank.triton_launch")
# NumPy warns of what the kernels mask: logits of pairs that do not count.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{what} encountered:RuntimeWarning")
    for what in ("overflow", "invalid value")
]

ROWS, COLUMNS = 32, 64  # of a tile
# Losses that between them use every table, head, direction and option of the kernels.
WAYS = [(name, "rows") for name in LOSSES]
WAYS += [("multi_level-temperatures", "prefixes"), ("unique_softmax", "symmetric")]
WAYS += [("info_nce", "joint"), ("sup_con", "columns"), ("siglip", "prefixes")]
SHAPES = [
    Shape(ROWS - 1, COLUMNS + 1, 24, 3),
    Shape(ROWS, COLUMNS, 24, 3),
    Shape(ROWS + 1, COLUMNS - 1, 24, 3),
    Shape(1, 10 * COLUMNS + 7, 5, 2),  # the columns are split
]


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_loss(name: str, way: str) -> None:
    inputs = make_inputs(SHAPE, torch.float64, seed=1)
    actual, expected = (step(name, way, inputs, b) for b in ("triton", "reference"))
    for result, value in actual.items():
        torch.testing.assert_close(value, expected[result], rtol=1e-9, atol=1e-12, msg=result)


@pytest.mark.parametrize("product", ["fused", "vendor"])
@pytest.mark.parametrize("name", ["multi_level", "pairwise"])
# Of bfloat16 the interpreter computes with the bits; see tests/compiled/.
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["fp16", "fp32"])
def test_product(name: str, product: str, dtype: torch.dtype) -> None:
    inputs, reference, truth = evidence(name, "rows", dtype)
    actual = [step(name, "rows", x, "triton", product=product) for x in inputs]
    for result in actual[0]:
        judge(result, actual, reference, truth)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.id(torch.float64))
def test_tables(shape: Shape) -> None:
    """Every table and its gradient, on both sides of the edge of a tile."""
    inputs = make_inputs(shape, torch.float64, seed=2)
    level = inputs.levels.block(0, shape.N, shape.M)
    count = torch.stack([(level == k).sum(dim=1) for k in range(shape.K + 1)], dim=1)
    upstream = upstreams(count, seed=2)
    upstream["neg_lse"][:, 0] = 0
    batch = inputs, inputs.levels, LossOptions()
    actual, expected = (table_step(*batch, b, upstream) for b in ("triton", "reference"))
    assert torch.equal(actual["count"], count)
    for name, value in actual.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_of_equal_extremes_the_first_counts(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In tiles of one program and of several. Products with unit vectors are exact."""
    monkeypatch.setattr("grainrank.triton_passes.PROGRAMS", 2)
    few = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    kind = torch.arange(5 * COLUMNS + 7) % 5
    level = (kind >= 3).long()
    q, c, levels = few, torch.eye(5)[kind], level.expand(3, -1)
    if side == "columns":
        q, c, levels = c, q, levels.T
    source = grainrank.DenseLevels(levels, 1)
    stats = level_statistics(
        q, c, source, temperature=1.0, normalize=False, direction="symmetric", backend="triton"
    )[side == "columns"]
    for row, highest, lowest in zip(few, stats.highest_at, stats.lowest_at, strict=True):
        unrelated, related = row[:3], row[3:]
        assert highest.tolist() == [unrelated.argmax(), 3 + related.argmax()]
        assert lowest.tolist() == [unrelated.argmin(), 3 + related.argmin()]


@pytest.mark.parametrize("name", list(sources(2, 2)))
@pytest.mark.parametrize("side", ["as given", "transposed"])
def test_level_source(name: str, side: str) -> None:
    n, m = ROWS + 3, COLUMNS + 6
    source = sources(n, m)[name]
    expected = source.block(0, n, m)
    if side == "transposed":
        source, n, m, expected = source.transposed(), m, n, expected.T
    assert torch.equal(seen(source, "triton", n, m), expected.long())


@each_margin
def test_false_negative_margin(options: dict[str, Any]) -> None:
    actual, expected = (
        margin_step(options, ROWS + 1, COLUMNS + 1, backend) for backend in ("triton", "reference")
    )
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        # The moments of rows and columns take their norms' gradients; they have the scale.
        {"matryoshka_dims": (8, 24)},
        {"memory": 9, "direction": "symmetric"},
    ],
    ids=["prefixes", "memory"],
)
def test_a_step(options: dict[str, Any]) -> None:
    actual, expected = (
        loss_step(ROWS + 1, COLUMNS - 3, backend, **options) for backend in ("triton", "reference")
    )
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_a_negative_at_the_ceiling_counts() -> None:
    """As similar as the best positive, bit by bit."""
    levels = grainrank.DenseLevels(torch.tensor([[1, 0, 0]]), 1).false_negative_margin(0.0)
    q, c = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    stats = level_statistics(q, c, levels, temperature=1.0, backend="triton")
    assert stats.count.tolist() == [[2, 1]]


@pytest.mark.parametrize("upstream", [1e-4, -1e-4])
def test_gradients_too_small_for_float16_survive(upstream: float) -> None:
    """Of small upstream gradients and long embeddings: those of the product would be 0."""
    q, c = make_inputs(Shape(33, 70, 24, 3), torch.float16)[:2]
    results = []
    for backend, dtype in (("triton", torch.float16), ("reference", torch.float32)):
        x, y = ((16 * e).to(dtype).requires_grad_() for e in (q, c))
        total = level_statistics(x, y, logit_scale=1e3, backend=backend).total
        results.append(torch.autograd.grad((upstream * total).sum(), [x, y]))
    for ours, expected in zip(*results, strict=True):
        error = (ours.float() - expected).abs().max()
        assert error < torch.finfo(torch.float16).eps * expected.abs().max()


def test_a_step_repeats_bit_by_bit() -> None:
    inputs = make_inputs(Shape(ROWS + 1, 5 * COLUMNS, 24, 3), torch.float32)
    first, second = (step("sup_con", "symmetric", inputs, "triton") for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


class Waits(TorchDispatchMode):
    """Collects the operators that a host has to wait for a GPU in."""

    NAMES = (
        "item",
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "_unique2",
        "is_nonzero",
        "equal",
    )

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1] or ()
        )
        if name in self.NAMES or by_mask:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is waited for while nothing is launched: in the loss, and in the operators."""
    monkeypatch.setattr(triton_launch, "run", lambda *args, **constants: None)
    mode, plain = Waits(), ops.plain

    @contextlib.contextmanager
    def watched(queries: torch.Tensor) -> Iterator[None]:
        with plain(queries), mode:
            yield

    monkeypatch.setattr(ops, "plain", watched)
    with mode:
        yield mode.found


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_a_step_waits_for_nothing(name: str, way: str, waits: list[str]) -> None:
    """As the capture of a CUDA graph asks for."""
    step(name, way, make_inputs(SHAPE, torch.float32), "triton")
    assert waits == []


def test_dense_levels_are_looked_at(waits: list[str]) -> None:
    levels = grainrank.DenseLevels(torch.zeros(3, 4, dtype=torch.int8), 2)
    q, c = torch.ones(3, 5), torch.ones(4, 5)
    level_statistics(q, c, levels, temperature=0.1, backend="triton")
    assert len(waits) > 0


def test_levels_out_of_range_are_an_error() -> None:
    levels = grainrank.DenseLevels(torch.full((3, 4), 9, dtype=torch.int8), 2)
    q, c = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"levels must lie in -1\.\.2"):
        level_statistics(q[:3], c, levels, temperature=0.1, backend="triton")


def loss(backend: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    inputs = make_inputs(Shape(5, 7, 4, 2), dtype)
    return info_nce_loss(*inputs[:2], inputs.levels, temperature=0.2, backend=backend, **options)


@pytest.mark.parametrize(
    ("backend", "dtype", "options", "message"),
    [
        (
            "triton",
            torch.float32,
            {"product": "best"},
            "product must be 'auto', 'fused' or 'vendor'",
        ),
        (
            "cpu",
            torch.float32,
            {"product": "vendor"},
            'is an option of backend="triton", got .*cpu',
        ),
        ("triton", torch.float64, {"product": "fused"}, "needs float16, bfloat16 or float32, got"),
        (
            "triton",
            torch.float32,
            {"product": "fused", "matryoshka_dims": [2, 4]},
            "has one similarity for each pair, got 2 matryoshka_dims",
        ),
    ],
)
def test_product_errors(
    backend: str, dtype: torch.dtype, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        loss(backend, dtype, **options)


def test_without_a_gpu_it_says_so() -> None:
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = False
        with pytest.raises(ValueError, match=r'backend="triton" needs tensors on a GPU .* on cpu'):
            loss("triton")


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (None, r"needs Triton, which is not installed: pip install 'grainrank\[triton\]'"),
        ("3.2.0", r"needs Triton 3.9 or newer, got 3.2.0: pip install -U triton"),
    ],
)
def test_without_triton_it_says_what_to_install(
    version: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_triton_version", lambda: version)
    with pytest.raises(ValueError, match=message):
        loss("triton")
    assert torch.isfinite(loss("auto"))
