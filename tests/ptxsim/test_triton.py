"""What Triton makes of a matrix product, against NumPy: pipelines, mma and wgmma of every type."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from .build import compiler

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.skipif(compiler() is None, reason="g++ is not on the PATH"),
]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
M, N, K = 70, 48, 144
BLOCKS = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}


def operands(dtype: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A [M, K] and B [K, N]; in tf32 they have no more bits than that."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(s, generator=generator).to(DTYPES[dtype]) for s in ((M, K), (K, N)))
    if dtype == "tf32":
        a, b = ((x.view(torch.int32) & ~0x1FFF).view(torch.float32) for x in (a, b))
    return a, b


def run(
    capability: int,
    dtype: str,
    stages: int,
    layout: str = "nt",
    scale: float | None = None,
    seed: int = 0,
    edit: Callable[[str], str] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from .driver import use
    from .triton_kernels import matmul

    a, b = operands(dtype)
    a_stored = a.T.contiguous() if layout[0] == "t" else a
    b_stored = b.T.contiguous() if layout[1] == "t" else b
    out = torch.full((M, N), torch.nan)
    row_max, row_sum = torch.full((M,), torch.nan), torch.full((M,), torch.nan)
    with use(capability, seed=seed, edit=edit):
        matmul[(2,)](
            a_stored, b_stored, out, row_max, row_sum, M, N, K, scale or 1.0,
            A_T=layout[0] == "t", B_T=layout[1] == "t", SCALED=scale is not None,
            PRECISION="tf32" if dtype == "tf32" else "ieee", STAGES=stages, **BLOCKS,
            enable_fp_fusion=True,
        )  # fmt: skip
    return out, row_max, row_sum


def check(results: tuple[torch.Tensor, ...], dtype: str, scale: float | None = None) -> None:
    a, b = operands(dtype)
    if scale is not None:
        a = a * scale
    product = a.double().numpy() @ b.double().numpy()
    largest = product.max(1)
    expected = (product, largest, np.exp(product - largest[:, None]).sum(1))
    for actual, exact in zip(results, expected, strict=True):
        np.testing.assert_allclose(actual.numpy(), exact, rtol=2e-5, atol=2e-5)


def kept(ptxs: list[str]) -> Callable[[str], str]:
    def keep(ptx: str) -> str:
        ptxs.append(ptx)
        return ptx

    return keep


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("capability", [80, 90])
def test_pipeline(capability: int, dtype: str, stages: int) -> None:
    ptxs: list[str] = []
    check(run(capability, dtype, stages, edit=kept(ptxs)), dtype)
    (ptx,) = ptxs
    assert ("cp.async" in ptx) == (stages > 1)
    print(sorted(set(re.findall(r"(?:wgmma|mma|ldmatrix|cp|fence|mbarrier)\.[\w.:]+", ptx))))
