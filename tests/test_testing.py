"""The rule of accuracy and the inputs that the other tests lean on: they can fail, and repeat."""

from __future__ import annotations

import pytest
import torch

from grainrank.testing import (
    DTYPES,
    SHAPES,
    Draw,
    Shape,
    assert_accurate,
    make_dense_levels,
    make_inputs,
)

TRUTH = torch.linspace(-4, 4, 101, dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_the_bound(dtype: torch.dtype) -> None:
    """2 eps max|truth| with an exact reference: just inside passes, just outside does not."""
    exact = TRUTH.to(dtype)
    step = 4 * torch.finfo(dtype).eps
    for factor, fails in ((1.5, False), (2.5, True)):
        actual = exact.clone()
        actual[50] += factor * step
        draw = Draw(actual, exact, exact.double())
        if fails:
            with pytest.raises(AssertionError, match=r"d_queries: error .* is above"):
                assert_accurate("d_queries", draw)
        else:
            assert_accurate("d_queries", draw)


def test_the_error_of_the_reference_counts_twice() -> None:
    reference = TRUTH.float() + 1e-3
    assert_accurate("x", Draw(TRUTH.float() + 1.9e-3, reference, TRUTH))
    with pytest.raises(AssertionError, match="above"):
        assert_accurate("x", Draw(TRUTH.float() + 2.1e-3, reference, TRUTH))


def test_errors_are_the_largest_over_all_draws() -> None:
    """A lucky reference in one draw does not fail an equally good result."""
    truth = torch.tensor(1.0, dtype=torch.float64)
    one, off = truth.float(), truth.float() + 1e-5
    with pytest.raises(AssertionError, match="above"):
        assert_accurate("x", Draw(off, one, truth))
    assert_accurate("x", Draw(off, one, truth), Draw(one, off, truth))
    with pytest.raises(AssertionError, match="above"):
        assert_accurate("x", Draw(one + 3e-5, one, truth), Draw(one, off, truth))


@pytest.mark.parametrize("position", [0, 50, 100])
def test_nan_fails_wherever_it_is(position: int) -> None:
    actual = TRUTH.float()
    actual[position] = torch.nan
    clean = Draw(TRUTH.float(), TRUTH.float(), TRUTH)
    for draws in ([Draw(actual, *clean[1:])], [clean, Draw(actual, *clean[1:]), clean]):
        with pytest.raises(AssertionError, match="error nan"):
            assert_accurate("x", *draws)


def test_low_part_of_the_truth() -> None:
    """float64 is judged against more digits than it has."""
    high = torch.ones(3, dtype=torch.float64)
    low = torch.full_like(high, 1e-17)
    eps = torch.finfo(torch.float64).eps
    assert_accurate("x", Draw(high, high, high, low))
    with pytest.raises(AssertionError, match="above"):
        assert_accurate("x", Draw(high + 3 * eps, high, high, low))


def test_what_cannot_be_judged() -> None:
    one = torch.ones(2)
    with pytest.raises(ValueError, match="one shape"):
        assert_accurate("x", Draw(one, one[:1], one.double()))
    with pytest.raises(ValueError, match="one shape"):
        assert_accurate("x", Draw(one, one.double(), one.double()))
    for bad in (torch.nan, torch.inf, -1e30, 1e30):
        with pytest.raises(ValueError, match="count > 0"):
            assert_accurate("x", Draw(one, one, torch.tensor([1.0, bad], dtype=torch.float64)))
    assert_accurate("x", Draw(one[:0], one[:0], one[:0].double()))


def test_shapes() -> None:
    """Every pair of the sizes of the house rules, with a readable name."""
    sizes = {1, 7, 63, 64, 65, 1003}
    assert {(s.N, s.M) for s in SHAPES} == {(n, m) for n in sizes for m in sizes}
    assert {s.K for s in SHAPES} == {1, 2, 3, 4}
    assert 1 in {s.D for s in SHAPES}
    assert Shape(63, 65, 40).id(torch.bfloat16) == "N63-M65-D40-K3-bf16"


def test_inputs_repeat_and_differ() -> None:
    shape = Shape(40, 60, 8, 3)
    a, b, c = make_inputs(shape), make_inputs(shape), make_inputs(shape, seed=1)
    for x, y, z in zip(a, b, c, strict=True):
        assert torch.equal(x, y)
        assert not torch.equal(x, z)
    assert torch.equal(make_inputs(shape, torch.bfloat16).queries, a.queries.bfloat16())


def test_levels_of_the_inputs_are_realistic() -> None:
    """All levels occur, finer ones in fewer pairs, and nearly every query has a positive."""
    shape = Shape(500, 800, 8, 4)
    inputs = make_inputs(shape)
    level = inputs.levels.block(0, 500, 800)
    share = [float((level == k).double().mean()) for k in range(5)]
    assert share == sorted(share, reverse=True)
    assert 0 < share[4] < 0.01
    assert float((level > 0).any(dim=1).double().mean()) > 0.9
    assert 0.05 < float((inputs.query_keys[:, -1] < 0).double().mean()) < 0.15
    z = (
        torch.nn.functional.normalize(inputs.queries)
        @ torch.nn.functional.normalize(inputs.candidates).T
    )
    means = [float(z[level == k].mean()) for k in range(5)]
    assert means == sorted(means)
    dense = make_dense_levels(shape, 8)
    assert set(dense.unique().tolist()) == set(range(-1, 9))
