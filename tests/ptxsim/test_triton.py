"""What Triton makes of a matrix product, against NumPy: pipelines, mma and wgmma of every type."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from .barriers import Deletion, deletions, search
from .build import compiler
from .errors import SimulatorError

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.skipif(compiler() is None, reason="g++ is not on the PATH"),
]

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "tf32": torch.float32,
    "fp32": torch.float32,
}
# Two programs, the second ragged; five tiles of features, the last ragged.
M, N, K = 70, 48, 144
BLOCKS = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}
SEEDS = [0, 1, 2, 3]
# Deleted barriers that are not missed, as what is left does the same work: either of two waits in a
# row, and at the head of the loop the wait and the barrier, which repeat those at its end.
REDUNDANT = {80: 4, 90: 0}
_PRODUCT = {
    80: {"bf16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
         "fp16": "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
         "tf32": "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", "fp32": "fma.rn.f32"},
    90: {"bf16": "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16",
         "fp16": "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16",
         "tf32": "wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32", "fp32": "fma.rn.f32"},
}  # fmt: skip
Results = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Edit = Callable[[str], str]


@pytest.fixture(autouse=True, scope="module")
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def operands(dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A [M, K] and B [K, N]; in tf32 they have no more bits than that."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(s, generator=generator).to(DTYPES[dtype]) for s in ((M, K), (K, N)))
    if dtype == "tf32":
        a, b = ((x.view(torch.int32) & ~0x1FFF).view(torch.float32) for x in (a, b))
    return a, b


def run(
    capability: int,
    dtype: str,
    stages: int,
    layout: str = "nt",
    scale: float = 1.0,
    seed: int = 0,
    edit: Edit | None = None,
) -> Results:
    """layout: whether A and B are stored transposed. scale: of A, in registers unless it is 1."""
    from .driver import use
    from .triton_kernels import matmul

    a, b = operands(dtype)
    stored = [x.T.contiguous() if way == "t" else x for x, way in zip((a, b), layout, strict=True)]
    results = tuple(torch.full(shape, torch.nan) for shape in ((M, N), (M,), (M,)))
    with use(capability, seed=seed, edit=edit):
        matmul[(2,)](
            *stored, *results, M, N, K, scale, A_T=layout[0] == "t", B_T=layout[1] == "t",
            SCALED=scale != 1, PRECISION="tf32" if dtype == "tf32" else "ieee", STAGES=stages,
            enable_fp_fusion=True, **BLOCKS,
        )  # fmt: skip
    return results[0], results[1], results[2]


def right(results: Results, dtype: str, scale: float = 1.0) -> bool:
    a, b = operands(dtype)
    product = scale * a.double().numpy() @ b.double().numpy()
    largest = product.max(1)
    expected = (product, largest, np.exp(product - largest[:, None]).sum(1))
    return all(
        np.allclose(actual.numpy(), exact, rtol=2e-5, atol=2e-5)
        for actual, exact in zip(results, expected, strict=True)
    )


def ptx_of(capability: int, dtype: str, stages: int, **more: object) -> str:
    """Checks the kernel in two orders of the threads; returns what it was compiled to."""
    ptxs: list[str] = []

    def keep(ptx: str) -> str:
        ptxs.append(ptx)
        return ptx

    scale = float(str(more.get("scale", 1.0)))
    for seed in (0, 1):
        results = run(capability, dtype, stages, seed=seed, edit=keep, **more)  # type: ignore[arg-type]
        assert right(results, dtype, scale)
    ptx = ptxs[0]
    assert _PRODUCT[capability][dtype] in ptx
    assert ("cp.async" in ptx) == (stages > 1)
    return ptx


@pytest.mark.parametrize(
    ("dtype", "stages"),
    [("bf16", n) for n in (1, 2, 3, 4)] + [(t, 3) for t in DTYPES if t != "bf16"],
)
@pytest.mark.parametrize("capability", [80, 90])
def test_pipeline(capability: int, dtype: str, stages: int) -> None:
    ptx = ptx_of(capability, dtype, stages)
    if capability == 90 and dtype != "fp32":
        assert "fence.proxy.async" in ptx


@pytest.mark.parametrize("layout", ["nn", "tn", "tt"])
@pytest.mark.parametrize("capability", [80, 90])
def test_layout(capability: int, layout: str) -> None:
    ptx = ptx_of(capability, "bf16", 2, layout=layout)
    if capability == 80:
        assert re.search(r"ldmatrix\.sync\.aligned\.m8n8\.x4\.trans", ptx)


@pytest.mark.parametrize("dtype", ["bf16", "tf32"])
def test_left_operand_in_registers(dtype: str) -> None:
    ptx = ptx_of(90, dtype, 3, scale=0.5)
    assert re.search(r"wgmma\.mma_async[\w.]+ \{[^}]*\}, \{", ptx)


@pytest.mark.parametrize(
    ("pattern", "match", "missed"),
    [
        # The second one: nothing was written since the first.
        (r"fence\.proxy\.async", "with no fence.proxy.async since", 1),
        (r"wgmma\.wait_group\.sync\.aligned", "no wgmma.wait_group, at triton_kernels.py", 0),
        (r"wgmma\.commit_group\.sync\.aligned", "no wgmma.wait_group, at triton_kernels.py", 0),
        (r"wgmma\.fence\.sync\.aligned", "no wgmma.fence", 0),
    ],
    ids=["proxy_fence", "wait", "commit", "fence"],
)
def test_wgmma_without(pattern: str, match: str, missed: int) -> None:
    ptx = ptx_of(90, "bf16", 2, scale=0.5)
    cases = [
        Deletion(0, place[0], ptx[: place.start()] + ptx[place.end() :])
        for place in re.finditer(f"{pattern}[^;]*;", ptx)
    ]

    def run_edited(ptx: str, seed: int) -> bool:
        return right(run(90, "bf16", 2, scale=0.5, seed=seed, edit=lambda _: ptx), "bf16", 0.5)

    evidence = [outcome.evidence for outcome in search(cases, run_edited, [0]) if outcome.found]
    assert len(evidence) == len(cases) - missed > 0
    assert all(re.search(match, text) for text in evidence)


@pytest.mark.parametrize("capability", [80, 90])
def test_deleted_barriers_are_found(capability: int) -> None:
    """Of a pipelined product and the reductions that follow it."""
    original = ptx_of(capability, "bf16", 3)

    def run_edited(ptx: str, seed: int) -> bool:
        return right(run(capability, "bf16", 3, seed=seed, edit=lambda _: ptx), "bf16")

    outcomes = search(deletions(original), run_edited, SEEDS)
    missed = [str(outcome.deletion) for outcome in outcomes if not outcome.found]
    assert len(outcomes) >= 14
    assert len(missed) <= REDUNDANT[capability], missed


def test_a_fused_first_step_of_a_sum_is_a_race() -> None:
    """`a * b + shuffled(a * b)` rounds differently in each lane, and all of them store the sum."""
    from .driver import use
    from .triton_kernels import row_dot

    a, b = torch.randn(2, 8, 128, generator=torch.Generator().manual_seed(0))
    out = torch.full((8,), torch.nan)
    with use(80):
        row_dot[(8,)](a, b, out, 128, BLOCK=128, enable_fp_fusion=False)
        assert torch.allclose(out, (a * b).sum(1), rtol=1e-5)
        with pytest.raises(SimulatorError, match=r"write-write race .* at standard\.py:\d+"):
            row_dot[(8,)](a, b, out, 128, BLOCK=128, enable_fp_fusion=True)
