"""The CUDA passes, host code and compiled kernels, in the rule of accuracy on the simulator."""

from __future__ import annotations

import functools
import operator
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiled.cuda_budget import NOT_BUILT
from compiled.cuda_code import built_module, code_of
from compiled.simulated_cuda import module, simulated
from levels_seen import seen
from lone_pairs import lone_pairs
from loss_step import loss_step
from margins import each_margin, margin_step
from test_accuracy_losses import PAIRS, evidence, step
from test_level_sources import sources
from three_ways import judge
from torch import Tensor

import grainrank
from grainrank import DenseLevels, GrainKeys, LevelSource, level_statistics
from grainrank.ranks import positive_ranks
from grainrank.testing import Shape, make_inputs

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SEEDS = [0, 1, 2, 3]  # orders of the threads
SMALL = Shape(33, 65, 24, 3)
EYE: LevelSource = DenseLevels(torch.eye(4, dtype=torch.int8))
IDS = torch.arange(4)
# Of the tiles of every kernel: rows of 64 and 256, columns of 32, 128, 256 and 2048.
EDGES = [
    Shape(63, 127, 16, 3),
    Shape(64, 128, 16, 3),
    Shape(65, 129, 17, 3),
    Shape(257, 31, 16, 3),
    Shape(3, 2049, 5, 3),
]
# Losses that between them use every kernel in every form.
FORMS = [
    ("info_nce", "symmetric"),  # column tables
    ("pairwise", "symmetric"),  # tables of every kind
    ("circle", "rows"),
    ("multi_level-temperatures", "prefixes"),  # several channels and prefixes
    ("unique_softmax", "rows"),  # softplus sums of positives
    ("siglip", "rows"),  # softplus sums of all, and their gradient
]


def check(name: str, way: str, shape: Shape, dtype: torch.dtype, capability: int = 80) -> None:
    inputs, reference, truth = evidence(name, way, dtype, shape, len(SEEDS))
    actual = []
    for seed, x in zip(SEEDS, inputs, strict=True):
        with simulated(capability, seed=seed):
            actual.append(step(name, way, x, "cuda"))
    for result in actual[0]:
        judge(result, actual, reference, truth)


def both(run: Callable[[Any], Any]) -> tuple[Any, Any]:
    """What a function of the backend gives for "cuda" and for the reference."""
    with simulated(80, seed=1):
        return run("cuda"), run("reference")


@pytest.mark.parametrize(("name", "way"), PAIRS)
def test_loss(name: str, way: str) -> None:
    check(name, way, SMALL, torch.float32)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize(("name", "way"), FORMS)
def test_loss_in_half_precision(name: str, way: str, dtype: str) -> None:
    check(name, way, SMALL, DTYPES[dtype])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_query_of_length_0_in_float16(sign: float) -> None:
    """Its gradients, 1e12 times those of the others, are cut off on either side: infinite ones
    would turn the candidates' into NaN.
    """
    q, c, *_ = make_inputs(SMALL, torch.float16, seed=1)
    q[2] = 0

    def run(backend: Any) -> Tensor:
        leaf, x = (t.clone().requires_grad_() for t in (q, c))
        loss = grainrank.info_nce_loss(leaf, x[: SMALL.N], temperature=0.1, backend=backend)
        (sign * loss).backward()
        assert x.grad is not None
        return x.grad

    actual, expected = both(run)
    assert bool(actual.isfinite().all())
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize(("name", "way"), PAIRS)
def test_loss_in_float64(name: str, way: str) -> None:
    """The formulas themselves, far below the rounding of float32."""
    inputs = make_inputs(SMALL, torch.float64, seed=1)
    expected = step(name, way, inputs, "reference")
    with simulated(80, seed=1):
        actual = step(name, way, inputs, "cuda")
    for result, value in actual.items():
        torch.testing.assert_close(value, expected[result], rtol=1e-9, atol=1e-12, msg=result)


@pytest.mark.parametrize("shape", EDGES, ids=lambda s: f"N{s.N}-M{s.M}-D{s.D}")
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_edges(shape: Shape, dtype: str) -> None:
    check("info_nce", "symmetric", shape, DTYPES[dtype])


@pytest.mark.parametrize("name", ["siglip", "unique_softmax"])
def test_edges_of_softplus(name: str) -> None:
    check(name, "rows", EDGES[-1], torch.float32)


@pytest.mark.parametrize(("name", "way"), FORMS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_capability_90(name: str, way: str, dtype: str) -> None:
    check(name, way, SMALL, DTYPES[dtype], capability=90)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_most_levels(dtype: torch.dtype) -> None:
    """15 levels, every table: the tiles shrink to what shared memory holds."""
    inputs = make_inputs(Shape(41, 70, 12, 15), dtype, seed=3)

    def run(backend: Any) -> list[Tensor]:
        q, c = (x.clone().requires_grad_() for x in inputs[:2])
        options: dict[str, Any] = {"temperature": 0.3, "direction": "symmetric"}
        value = grainrank.pairwise_ranking_loss(q, c, inputs.levels, backend=backend, **options)
        return [value.detach(), *torch.autograd.grad(value, [q, c])]

    for ours, expected in zip(*both(run), strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 1e-11
        error = (ours - expected).abs().max()
        assert error <= tolerance * expected.abs().max()


def test_every_table() -> None:
    """As the reference's, with the places of the extremes, where logits are tied."""
    inputs = make_inputs(Shape(70, 300, 8, 3), torch.float32, seed=4)
    coarse = [(x * 4).round() for x in inputs[:2]]  # many equal logits
    options: dict[str, Any] = {"logit_scale": 0.25, "normalize": False}
    tables = both(lambda b: level_statistics(*coarse, inputs.levels, backend=b, **options))
    for name in ("count", "highest", "lowest"):
        assert torch.equal(getattr(tables[0], name), getattr(tables[1], name)), name
    for name in ("lse", "neg_lse", "total"):
        torch.testing.assert_close(getattr(tables[0], name), getattr(tables[1], name), msg=name)


@pytest.mark.parametrize("name", list(sources(2, 2)))
@pytest.mark.parametrize("side", ["as given", "transposed"])
def test_level_source(name: str, side: str) -> None:
    n, m = 35, 67
    source = sources(n, m)[name]
    expected = source.block(0, n, m).long()
    if side == "transposed":
        source, n, m, expected = source.transposed(), m, n, expected.T
    with simulated(80, seed=1):
        assert torch.equal(seen(source, "cuda", n, m), expected)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8], ids=str
)
def test_dtype_of_keys(dtype: torch.dtype) -> None:
    """Keys beyond 32 bits that agree in these, and unknown keys."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(0, 3, (21, 2), generator=generator)
    if dtype == torch.int64:
        keys += torch.tensor([0, 1 << 32])[torch.randint(0, 2, (21, 2), generator=generator)]
    keys = keys.to(dtype)
    if dtype.is_signed:
        keys[3] = -1
    source = GrainKeys(keys, keys[:9])
    with simulated(80):
        assert torch.equal(seen(source, "cuda", 21, 9), source.block(0, 21, 9).long())


@each_margin
def test_false_negative_margin(options: dict[str, Any]) -> None:
    actual, expected = both(lambda backend: margin_step(options, 33, 70, backend))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_memory() -> None:
    actual, expected = both(
        lambda backend: loss_step(33, 61, backend, memory=9, direction="symmetric")
    )
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_step_repeats_bit_by_bit(dtype: str) -> None:
    """Whatever the order of the threads."""
    inputs = make_inputs(Shape(65, 600, 24, 3), DTYPES[dtype])
    results: list[dict[str, Tensor]] = []
    for seed in SEEDS:
        with simulated(80, seed=seed):
            results.append(step("pairwise", "symmetric", inputs, "cuda"))
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


def test_every_kernel_runs() -> None:
    """What is compiled is launched by some loss, or by ranks, and so by the tests."""
    library = built_module()
    assert library is not None, NOT_BUILT
    compiled = set(next(iter(code_of(library).values())))
    losses = (grainrank.info_nce_loss, grainrank.pairwise_ranking_loss)
    options: dict[str, Any] = {"temperature": 0.5, "backend": "cuda"}
    ran: set[str] = set()
    for dtype in (*DTYPES.values(), torch.float64):
        for levels in (1, 3, 15):
            inputs = make_inputs(Shape(6, 9, 5, levels), dtype)
            q, c = (x.requires_grad_() for x in inputs[:2])
            batch = q, c, inputs.levels
            with simulated(80) as device:
                for loss in losses:
                    for direction in ("query_to_candidate", "symmetric"):
                        loss(*batch, direction=direction, **options).backward()
                grainrank.siglip_loss(*batch, logit_scale=2.0, backend="cuda").backward()
                grainrank.unique_softmax_loss(*batch, **options).backward()
                positive_ranks(*batch, backend="cuda")
                positive_ranks(*batch, **options).above.sum().backward()
                ran |= device.instructions().keys()
    assert compiled == ran


def test_several_row_blocks() -> None:
    inputs = make_inputs(Shape(150, 90, 16, 3), torch.float32)
    with simulated(80, seed=1):
        whole = step("pairwise", "symmetric", inputs, "cuda")
        parts = step("pairwise", "symmetric", inputs, "cuda", workspace_mb=0.05)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-7, msg=name)


def test_extreme_logits() -> None:
    """Far apart, ignored, not finite: as the reference."""
    inputs = make_inputs(Shape(20, 40, 8, 3), torch.float32)
    q, c = (x.clone() for x in inputs[:2])
    q[0] *= 1e4
    q[1] *= -1e4
    q[2], c[5] = torch.nan, torch.inf
    options: dict[str, Any] = {"logit_scale": 1.0, "normalize": False}
    tables = both(lambda b: level_statistics(q, c, inputs.levels, backend=b, **options))
    for name in ("count", "lse", "neg_lse", "total", "highest", "lowest"):
        ours, expected = (getattr(t, name)[:2] for t in tables)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5, equal_nan=True, msg=name)
    for table in (tables[0].lse, tables[0].total):
        assert table[2][tables[1].count[2] > 0].isnan().all()


@pytest.mark.parametrize("negative", [False, True], ids=["lse", "neg_lse"])
@pytest.mark.parametrize("level_scales", [None, [1.0, 0.3, 1.7]], ids=["plain", "factors"])
def test_a_pair_alone_at_its_level(level_scales: list[float] | None, negative: bool) -> None:
    with simulated(80, seed=1):
        torch.testing.assert_close(*lone_pairs("cuda", level_scales, negative))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (functools.reduce(operator.or_, [EYE] * 9), "at most 8 level sources, got 9"),
        (
            functools.reduce(lambda s, _: s.exclude(IDS, IDS + 9), range(5), EYE),
            "at most 4 exclusions, got 5",
        ),
    ],
    ids=["sources", "exclusions"],
)
def test_more_than_the_kernels_take(source: LevelSource, message: str) -> None:
    q = torch.eye(4)
    with simulated(80), pytest.raises(ValueError, match=f"the CUDA passes take {message}"):
        level_statistics(q, q, source, temperature=1.0, backend="cuda")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"row_stride": 9}, "not aligned to 16 bytes"),
        ({"similarities": 8}, "not aligned to 16 bytes"),
        ({"rows": -1}, "a size is negative, too large or smaller"),
        ({"columns": 9}, "a size is negative, too large or smaller"),
        ({"columns": 1 << 31, "row_stride": 1 << 31}, "a size is negative, too large"),
        ({"dtype": 2}, "no kernel for this combination of dtypes"),
        ({"max_level": 16}, "too many level sources, exclusions, channels, prefixes or levels"),
        ({"table_columns": 9}, "a size is negative, too large or smaller"),
    ],
    ids=str,
)
def test_what_a_launcher_refuses(changed: dict[str, int], message: str) -> None:
    """Before anything is launched."""
    native, given = module(80), dict(changed)
    source = native.Source(kind=int(native.SourceKind.DIAGONAL), max_level=1)
    levels = native.Levels(given.pop("max_level", 1), [source], [])
    table_columns = given.pop("table_columns", 0)
    sizes = {"dtype": 0, "similarities": 16, "rows": 2, "columns": 8, "row_stride": 8} | given
    block = native.Block(
        **sizes, first_row=0, scale=0, row_factors=0, column_factors=0, circle=False,
        circle_margin=0.0, ceilings=native.Ceilings(), levels=levels,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match=f"CUDA passes: .*{message}"):
        native.tables(
            block, factors=0, rows=native.Tables(), columns=native.Tables(),
            table_columns=table_columns, workspace=0, stream=0,
        )  # fmt: skip
