"""Exact ranks of embeddings that are read some rows at a time: arrays, files, other dtypes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from grainrank import DenseLevels, GrainKeys
from grainrank.ranks import PositiveRanks, positive_ranks, streamed, tiles

N, M, D = 11, 150, 6


@pytest.fixture(autouse=True, params=[True, False], ids=["rows", "tiles"])
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """And both ways to the ranks of tensors."""
    if not request.param:
        monkeypatch.setattr(tiles, "_COLUMNS", 0)
    row = D * 4
    monkeypatch.setattr(streamed, "_CHUNK", 40 * row)
    monkeypatch.setattr(tiles, "_QUERIES", 4)
    monkeypatch.setattr(tiles, "_QUERIES_OF_A_THREAD", 1)
    monkeypatch.setattr(tiles, "_CANDIDATES", 40 * row)
    monkeypatch.setattr(tiles, "_PAIRS", 7 * row)


def embeddings(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Dot products that are exact in every dtype, of few values."""
    generator = torch.Generator().manual_seed(0)
    q, c = (torch.randint(-2, 3, (n, D), generator=generator) for n in (N, M))
    return q.to(dtype) / 2, c.to(dtype)


def keys() -> GrainKeys:
    generator = torch.Generator().manual_seed(1)
    return GrainKeys(*(torch.randint(0, 4, (n, 2), generator=generator) for n in (N, M)))


def ranks(q: Any, c: Any, backend: str, **options: Any) -> PositiveRanks:
    return positive_ranks(q, c, keys(), normalize=False, backend=backend, **options)


def assert_equal(a: PositiveRanks, b: PositiveRanks) -> None:
    for name, x, y in zip(PositiveRanks._fields, a, b, strict=True):
        assert (x is y is None) or torch.equal(x, y), name


@pytest.mark.parametrize("workspace_mb", [None, 2e-3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_arrays_equal_tensors(
    dtype: torch.dtype, workspace_mb: float | None, backend: str, tmp_path: Path
) -> None:
    q, c = embeddings(dtype)
    expected = ranks(q, c, "reference")
    for name, x in (("q", q), ("c", c)):
        np.save(tmp_path / name, x.numpy())
    files = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("q", "c")]
    options = {"workspace_mb": workspace_mb}
    assert_equal(ranks(q, c, backend, **options), expected)
    assert_equal(ranks(*files, backend, **options), expected)
    assert_equal(ranks(q, files[1], backend, **options), expected)
    assert_equal(ranks(files[0], c, backend, **options), expected)


def test_layouts(backend: str) -> None:
    q, c = embeddings()
    expected = ranks(q, c, "reference")
    swapped = c.numpy().astype(c.numpy().dtype.newbyteorder())
    strided = np.zeros((M, 2 * D), dtype=np.float32)
    strided[:, ::2] = c.numpy()
    backwards = np.ascontiguousarray(c.numpy()[::-1])
    for other in (swapped, strided[:, ::2], backwards[::-1], np.asfortranarray(c.numpy())):
        assert_equal(ranks(q.numpy(), other, backend), expected)
    assert_equal(ranks(q, torch.from_numpy(strided)[:, ::2], backend), expected)


def test_dtypes_of_arrays_may_differ(backend: str) -> None:
    (q, _), (_, c) = embeddings(torch.float64), embeddings(torch.float16)
    found = ranks(q.numpy(), c.numpy(), backend)
    assert found.similarity.dtype == torch.float64
    assert torch.equal(found.above, ranks(*embeddings(), "reference").above)


def test_cosine(backend: str) -> None:
    q, c = (torch.randn(n, D, generator=torch.Generator().manual_seed(n)) for n in (N, M))
    expected = positive_ranks(q, c, keys(), backend="reference")
    found = positive_ranks(q.numpy() * 3, c.numpy() / 7, keys(), backend=backend, workspace_mb=2e-3)
    torch.testing.assert_close(found.similarity, expected.similarity, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.above, expected.above)


def test_cosines_of_files_have_the_bits_of_those_of_tensors(tmp_path: Path) -> None:
    q, c = (torch.randn(n, D, generator=torch.Generator().manual_seed(n)) for n in (N, M))
    np.save(tmp_path / "c", c.numpy())
    file = np.load(tmp_path / "c.npy", mmap_mode="r")
    of_file = positive_ranks(q, file, keys(), backend="cpu", workspace_mb=2e-3)
    assert_equal(of_file, positive_ranks(q, c, keys(), backend="cpu"))


@pytest.mark.parametrize(
    ("q", "c", "options", "error", "message"),
    [
        ("q", "c[:, 1:]", {}, ValueError, r"candidates must have D = 6 features.*got 5"),
        ("q", "c[0]", {}, ValueError, r"candidates must have shape \[rows, D\]"),
        ("q.astype(int)", "c", {}, TypeError, "queries must be float16, bfloat16"),
        ("q[:0]", "c", {}, ValueError, "queries must have at least one row, got none"),
        ("q", "c.tolist()", {}, TypeError, "candidates must be a torch.Tensor, a numpy array"),
        ("q", "c", {"temperature": 0.1}, TypeError, "must be tensors where a temperature is given"),
        ("q", "nan", {}, ValueError, "candidates must be finite, got NaN or infinity in row"),
        ("nan", "c", {}, ValueError, "queries must be finite, got NaN or infinity in row 2"),
    ],
)
def test_errors(
    q: str, c: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {name: x.numpy() for name, x in zip("qc", embeddings(), strict=True)}
    for name in "qc":
        if (q, c)["qc".index(name)] == "nan":
            given["nan"] = given[name].copy()
            given["nan"][2, 3] = np.nan
    with pytest.raises(error, match=message):
        ranks(eval(q, {}, given), eval(c, {}, given), "cpu", **options)


def test_products_that_overflow() -> None:
    """Of the norms, whose inverse is then 0."""
    q, c = torch.ones(7, 2), torch.ones(4, 2)
    q[6] = 1e30
    c[3] = 1e30
    levels = DenseLevels(torch.tensor([[1, 0, 0, 0]] * 6 + [[0, 0, 0, 1]]))
    with pytest.raises(ValueError, match="do not overflow, got NaN for query 6 and candidate 3"):
        positive_ranks(q, c, levels, backend="cpu")


def test_a_false_negative_margin_needs_tensors() -> None:
    q, c = (x.numpy() for x in embeddings())
    with pytest.raises(
        TypeError, match="must be tensors where levels have a false_negative_margin"
    ):
        positive_ranks(q, c, keys().false_negative_margin(0.1))
