"""Level sources as both backends read them: keys of any integer dtype and size, ids, matrices."""

from __future__ import annotations

import definition
import pytest
import torch
from levels_seen import seen
from torch import Tensor

from grainrank import DenseLevels, Diagonal, GrainKeys
from grainrank.testing import Shape, make_dense_levels, make_inputs

N, M = 9, 21
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


def random_keys(low: int, high: int, k: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(low, high, (N, k), generator=generator)
    c = torch.randint(low, high, (M, k), generator=generator)
    c[: N // 2] = q[::2][: N // 2]
    return q, c


@pytest.mark.parametrize("match", ["prefix", "count"])
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_keys_of_every_dtype(dtype: torch.dtype, match: str, backend: str) -> None:
    q, c = (x.to(dtype) for x in random_keys(0 if dtype == torch.uint8 else -2, 3))
    expected = torch.from_numpy(definition.levels(q, c, match)).long()
    assert torch.equal(seen(GrainKeys(q, c, match), backend, N, M), expected)  # type: ignore[arg-type]


def test_two_dtypes(backend: str) -> None:
    q, c = random_keys(0, 3)
    expected = seen(GrainKeys(q, c), backend, N, M)
    assert torch.equal(
        seen(GrainKeys(q.to(torch.uint8), c.to(torch.int16)), backend, N, M), expected
    )


@pytest.mark.parametrize("match", ["prefix", "count"])
def test_keys_beyond_32_bits(match: str, backend: str) -> None:
    """Hashes: equal in their low 32 bits, yet not equal; and negative ones stay unknown."""
    q, c = random_keys(-1, 3)
    expected = torch.from_numpy(definition.levels(q, c, match)).long()
    names = torch.tensor([-(2**62) - 1, 2**33 + 7, 7, 2**62 + 7])
    q, c = names[q + 1], names[c + 1]
    assert torch.equal(seen(GrainKeys(q, c, match), backend, N, M), expected)  # type: ignore[arg-type]


def test_keys_at_the_borders_of_32_bits(backend: str) -> None:
    big = 2**31
    q = torch.tensor([[big - 1], [big], [0], [-big], [-1]]).expand(5, 1)
    got = seen(GrainKeys(q, q.clone()), backend, 5, 5)
    expected = torch.eye(5, dtype=torch.int64)
    expected[3:] = 0
    assert torch.equal(got, expected)


@pytest.mark.parametrize("factor", [1, 2**40, -1, -(2**40)])
def test_ids_are_compared_as_they_are(factor: int, backend: str) -> None:
    """Also negative and huge ones: unlike a key, a negative id equals itself, and nothing else."""
    ids = torch.arange(1, 8) * factor
    q_ids, c_ids = ids[torch.arange(N) % 4], ids[torch.arange(M) % 7]
    got = seen(Diagonal().exclude(q_ids, c_ids), backend, N, M)
    expected = torch.zeros(N, M, dtype=torch.int64)
    expected[range(N), range(N)] = 1
    expected[q_ids[:, None] == c_ids] = -1
    assert torch.equal(got, expected)


def test_negative_ids_and_huge_ones_together(backend: str) -> None:
    """Numbering anew keeps -1, -2 and 2^40 apart."""
    ids = torch.tensor([-1, -2, 2**40, 2**40 + 2**32, 0, -(2**40)])
    got = seen(Diagonal().exclude(ids, ids), backend, 6, 6)
    assert torch.equal(got, -torch.eye(6, dtype=torch.int64))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_dense_levels_of_every_dtype(dtype: torch.dtype, backend: str) -> None:
    levels = make_dense_levels(Shape(N, M, 1), 15)
    if dtype == torch.uint8:
        levels = levels.clamp_min(0)
    assert torch.equal(seen(DenseLevels(levels.to(dtype)), backend, N, M), levels.long())


def test_dense_levels_with_strides(backend: str) -> None:
    levels = make_dense_levels(Shape(M, 2 * N, 1), 5)[:, ::2].t()
    assert not levels.is_contiguous()
    assert torch.equal(seen(DenseLevels(levels), backend, N, M), levels.long())


def test_fifteen_grains(backend: str) -> None:
    q, c = random_keys(0, 2, 15)
    levels = GrainKeys(q, c)
    expected = torch.from_numpy(definition.levels(q, c)).long()
    assert int(expected.max()) == 15
    assert torch.equal(seen(levels, backend, N, M), expected)


def test_max_level_of_dense_levels() -> None:
    """Read from the data, at least 1; or given, and then a level may be empty in the batch."""
    assert DenseLevels(torch.tensor([[0, 3, -1]])).max_level == 3
    assert DenseLevels(torch.tensor([[0, -1]])).max_level == 1
    assert DenseLevels(torch.tensor([[0, 3]]), 9).max_level == 9


def test_unknown_keys_of_the_inputs_factory() -> None:
    """The factory that the other tests use does give unknown keys and all levels."""
    inputs = make_inputs(Shape(65, 65, 8, 4))
    assert (inputs.query_keys == -1).any()
    assert set(inputs.levels.block(0, 65, 65).unique().tolist()) == {0, 1, 2, 3, 4}
