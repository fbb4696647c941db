"""The vector exponential and logarithm: at most 2 ulp from the exact value, everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

native = pytest.importorskip("grainrank._native")

RANGES = {torch.float32: (-104.5, 89.5), torch.float64: (-746.5, 710.5)}
DTYPES = pytest.mark.parametrize("dtype", RANGES, ids=["fp32", "fp64"])


def exponential(x: Tensor, name: str) -> Tensor:
    return over("exponential", x, name)


def over(function: str, x: Tensor, name: str) -> Tensor:
    y = torch.empty_like(x)
    run(function, x, y, x.numel(), name)
    return y


def run(function: str, x: Tensor, y: Tensor, length: int, name: str) -> None:
    typed = native.function_f32 if x.dtype == torch.float32 else native.function_f64
    typed(name, function, x.data_ptr(), y.data_ptr(), length)


def samples(dtype: torch.dtype) -> Tensor:
    """Dense over the whole range, denser around 0, and the neighbours of every n ln 2 / 2."""
    low, high = RANGES[dtype]
    generator = torch.Generator().manual_seed(0)
    even = torch.linspace(low, high, 400_001, dtype=torch.float64)
    near = torch.randn(200_000, generator=generator, dtype=torch.float64)
    tiny = torch.logspace(-40, 0, 20_000, dtype=torch.float64)
    steps = torch.arange(int(2 * low / 0.6931), int(2 * high / 0.6931)) * (np.log(2) / 2)
    x = torch.cat([even, near, tiny, -tiny, steps.double()]).to(dtype)
    beside = [torch.nextafter(x, torch.full_like(x, to)) for to in (-torch.inf, torch.inf)]
    return torch.cat([x, *beside])


def spacing(exact: Any, dtype: torch.dtype) -> Any:
    """One unit in the last place of a number in `dtype`, denormal numbers included."""
    info = np.finfo(np.float32 if dtype == torch.float32 else np.float64)
    exponent = np.floor(np.log2(np.maximum(exact, np.longdouble(info.smallest_normal))))
    return np.exp2(exponent - info.nmant)


@DTYPES
def test_at_most_two_ulp(dtype: torch.dtype, instruction_set: str) -> None:
    x = samples(dtype)
    got = exponential(x, instruction_set)
    exact = np.exp(x.numpy().astype(np.longdouble))
    largest = np.longdouble(torch.finfo(dtype).max)
    finite = exact < largest
    assert torch.equal(got.isinf(), torch.from_numpy(~finite))
    error = np.abs(got.numpy().astype(np.longdouble) - exact)[finite]
    ulp = (error / spacing(exact, dtype)[finite]).max()
    assert float(ulp) <= 2
    denormal = torch.from_numpy((exact < np.longdouble(torch.finfo(dtype).tiny)).astype(bool))
    assert (got[denormal] > 0).any()


@DTYPES
def test_log1p_at_most_two_ulp(dtype: torch.dtype, instruction_set: str) -> None:
    """On 0..1, where the softplus needs it."""
    generator = torch.Generator().manual_seed(0)
    even = torch.linspace(0, 1, 400_001, dtype=torch.float64)
    near = torch.rand(200_000, generator=generator, dtype=torch.float64)
    tiny = torch.logspace(-40, 0, 20_000, dtype=torch.float64)
    x = torch.cat([even, near, tiny]).to(dtype)
    got = over("log1p", x, instruction_set)
    exact = np.log1p(x.numpy().astype(np.longdouble))
    ulp = np.abs(got.numpy().astype(np.longdouble) - exact) / spacing(exact, dtype)
    assert float(ulp.max()) <= 2
    assert over("log1p", torch.tensor([torch.nan], dtype=dtype), instruction_set).isnan().all()


@DTYPES
def test_special_values(dtype: torch.dtype, instruction_set: str) -> None:
    x = torch.tensor(
        [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e30, -1e30, 90.0, -200.0], dtype=dtype
    )
    if dtype == torch.float64:
        x[-2:] *= 10
    expected = torch.tensor([1, 1, torch.inf, 0, torch.nan, torch.inf, 0, torch.inf, 0]).to(dtype)
    torch.testing.assert_close(
        exponential(x, instruction_set), expected, rtol=0, atol=0, equal_nan=True
    )


@DTYPES
@pytest.mark.parametrize("length", [*range(18), 31, 33])
def test_every_length(length: int, dtype: torch.dtype, instruction_set: str) -> None:
    """The tail after the last whole vector; nothing is written behind the end."""
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(length + 5, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.full_like(x, -1)
    run("exponential", x, y, length, instruction_set)
    torch.testing.assert_close(y[:length], x[:length].exp())
    assert (y[length:] == -1).all()


def test_unknown_instruction_set() -> None:
    """An instruction set that the machine lacks is refused by name."""
    x = torch.zeros(1)
    with pytest.raises(ValueError, match="no instruction set named sse9"):
        run("exponential", x, x, 1, "sse9")
