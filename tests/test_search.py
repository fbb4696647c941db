"""Exact search: equal to sorting the whole matrix, whatever the blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from profiling import profiled
from torch import Tensor

from grainrank.top_k import SearchResult, search

WORKSPACES = (1e-5, 1e-3, 0.02, 1.0, None)  # one pair at a time .. all at once


def whole_numbers(seed: int, n: int, m: int, d: int = 6) -> tuple[Tensor, Tensor]:
    """Products are exact in every dtype, and many are equal."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda rows: torch.randint(-2, 3, (rows, d), generator=g).float()  # noqa: E731
    return draw(n), draw(m)


def sorted_whole(q: Tensor, c: Tensor, k: int) -> SearchResult:
    s = q @ c.T
    order = s.argsort(dim=1, descending=True, stable=True)[:, :k]
    return SearchResult(s.gather(1, order), order)


def check(actual: SearchResult, expected: SearchResult) -> None:
    torch.testing.assert_close(actual.indices, expected.indices, rtol=0, atol=0)
    torch.testing.assert_close(
        actual.scores, expected.scores.to(actual.scores.dtype), rtol=0, atol=0
    )


@pytest.mark.parametrize("workspace_mb", WORKSPACES)
@pytest.mark.parametrize("k", [1, 7, 64, 65, 301])
def test_equals_a_stable_sort(k: int, workspace_mb: float | None) -> None:
    q, c = whole_numbers(0, 13, 301)
    check(search(q, c, k, normalize=False, workspace_mb=workspace_mb), sorted_whole(q, c, k))


@pytest.mark.parametrize("chunk_rows", [1, 63, 64, 65, 1003, 5000])
@pytest.mark.parametrize("order", ["random", "rising", "falling"])
def test_orders_of_candidates(order: str, chunk_rows: int) -> None:
    """Rising scores are the most that can pass the bar."""
    q, c = whole_numbers(1, 7, 5003 if chunk_rows > 1 else 203)
    if order != "random":
        q = q[:1].expand(7, -1)
        c = c[(q[0] @ c.T).argsort(descending=order == "falling")]
    found = search(q, c, 10, normalize=False, chunk_rows=chunk_rows)
    check(found, sorted_whole(q, c, 10))


def test_all_equal() -> None:
    ones = torch.ones(2000, 3)
    found = search(ones[:3], ones, 5, workspace_mb=0.05)
    assert found.indices.tolist() == [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    q, c = whole_numbers(2, 9, 400)
    found = search(q.to(dtype), c.to(dtype), 20, normalize=False)
    assert found.scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    check(found, sorted_whole(q, c, 20))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_arrays_and_files(dtype: str, tmp_path: Path) -> None:
    q, c = whole_numbers(3, 9, 1500)
    file: Any = np.memmap(tmp_path / "rows", dtype=dtype, mode="w+", shape=tuple(c.shape))
    file[:] = c.numpy()
    file.flush()
    read = np.memmap(tmp_path / "rows", dtype=dtype, mode="r", shape=tuple(c.shape))
    expected = sorted_whole(q, c, 20)
    check(search(q, read, 20, normalize=False, chunk_rows=100), expected)
    check(search(q.numpy().astype(dtype), c.numpy(), 20, normalize=False), expected)
    check(search(read[:9], c, 20, normalize=False), sorted_whole(c[:9], c, 20))


def test_iterables_of_chunks() -> None:
    q, c = whole_numbers(4, 9, 700)
    sizes = [1, 0, 300, 399]
    chunks = (part if i % 2 else part.numpy() for i, part in enumerate(c.split(sizes)))
    found = search(iter(q.split(4)), chunks, 20, normalize=False, chunk_rows=128)
    check(found, sorted_whole(q, c, 20))


def test_cosine() -> None:
    g = torch.Generator().manual_seed(5)
    q, c = (torch.randn(n, 40, generator=g, dtype=torch.float64) for n in (65, 1003))
    unit = [x / x.norm(dim=1, keepdim=True) for x in (q, c)]
    expected = sorted_whole(*unit, 30)
    found = search(q, c, 30, workspace_mb=0.3)
    assert found.indices.equal(expected.indices)
    torch.testing.assert_close(found.scores, expected.scores)
    single = search(q.float(), c.float(), 30)
    torch.testing.assert_close(single.scores.double(), expected.scores, rtol=0, atol=1e-6)


def test_strides_and_gradients() -> None:
    q, c = whole_numbers(6, 9, 300, d=12)
    expected = sorted_whole(q[:, ::2], c[:, ::2], 20)
    check(search(q[:, ::2], c[:, ::2].T.contiguous().T, 20, normalize=False), expected)
    check(search(q.numpy()[:, ::2], c.numpy()[:, ::2], 20, normalize=False), expected)
    found = search(q.requires_grad_(), c, 3)
    assert not found.scores.requires_grad


@pytest.mark.parametrize("workspace_mb", WORKSPACES)
def test_exclude(workspace_mb: float | None) -> None:
    """Rows run out of candidates where the ids are few."""
    _, c = whole_numbers(7, 1, 203)
    ids = torch.arange(203) % 29
    ids[:190] = torch.where(torch.arange(190) % 2 == 0, 3, ids[:190])
    q = c[:9]
    s = (q @ c.T).masked_fill(ids[:9, None] == ids[None, :], -torch.inf)
    order = s.argsort(dim=1, descending=True, stable=True)[:, :150]
    scores = s.gather(1, order)
    expected = SearchResult(scores, order.masked_fill(scores == -torch.inf, -1))
    assert (expected.indices == -1).any()
    found = search(
        q, c, 150, normalize=False, exclude=(ids[:9], ids.numpy()), workspace_mb=workspace_mb
    )
    check(found, expected)


def test_infinite_scores_come_before_empty_places() -> None:
    c = torch.tensor([[-torch.inf], [1.0], [-torch.inf], [torch.inf]])
    ids = torch.tensor([0, 1, 2, 3])
    found = search(torch.ones(1, 1), c, 4, normalize=False, exclude=(ids[2:3], ids))
    assert found.indices.tolist() == [[3, 1, 0, -1]]


def test_no_queries() -> None:
    found = search(torch.empty(0, 4), torch.ones(5, 4), 2)
    assert found.scores.shape == found.indices.shape == (0, 2)


@pytest.mark.parametrize("row", [3, 4000])
def test_nan(row: int) -> None:
    """In the first block, and behind the bar."""
    g = torch.Generator().manual_seed(8)
    q, c = torch.randn(5, 8, generator=g), torch.randn(5000, 8, generator=g)
    c[row, 2] = torch.nan
    with pytest.raises(ValueError, match=f"NaN for row 0 of queries and row {row} of candidates"):
        search(q, c, 10)


def test_memory_is_bounded() -> None:
    g = torch.Generator().manual_seed(9)
    q, c = torch.randn(500, 16, generator=g), torch.randn(40_000, 16, generator=g)
    result, matrix = 500 * 10 * 12, 500 * 40_000 * 4
    step = lambda: search(q, c, 10, workspace_mb=2.0)  # noqa: E731
    step()
    assert profiled(step).peak < 2 * (2.0 * 2**20) + 4 * result < matrix / 10
    rising = c[(q[0] @ c.T).argsort()]
    assert profiled(lambda: search(q, rising, 10, workspace_mb=2.0)).peak < matrix / 10


def test_equals_faiss() -> None:
    faiss = pytest.importorskip("faiss")
    q, c = whole_numbers(10, 65, 1003)
    g = torch.Generator().manual_seed(10)
    q, c = q + torch.rand(q.shape, generator=g), c + torch.rand(c.shape, generator=g)
    index = faiss.IndexFlatIP(c.shape[1])
    index.add(c.numpy())
    scores, indices = index.search(q.numpy(), 20)
    found = search(q, c, 20, normalize=False, workspace_mb=0.1)
    torch.testing.assert_close(found.scores, torch.from_numpy(scores), rtol=1e-5, atol=1e-5)
    assert (found.indices == torch.from_numpy(indices)).double().mean() > 0.99


ROWS = torch.ones(4, 3)
IDS = torch.arange(4)
ERRORS: list[tuple[Any, type[Exception], str]] = [
    (lambda: search(ROWS, ROWS, 5), ValueError, r"k must be at most M = 4.*got 5; pass k=min"),
    (lambda: search(ROWS, iter([ROWS]), 5), ValueError, "k must be at most M = 4"),
    (lambda: search(ROWS, [], 1), ValueError, "k must be at most M = 0"),
    (lambda: search(ROWS, ROWS, 0), ValueError, "k must be at least 1, got 0"),
    (lambda: search(ROWS, ROWS, 1.0), TypeError, "k must be an int, got float"),  # type: ignore[arg-type]
    (lambda: search(ROWS, ROWS, 1, chunk_rows=0), ValueError, "chunk_rows must be at least 1"),
    (lambda: search(ROWS, ROWS, 1, workspace_mb=-1), ValueError, "workspace_mb must be positive"),
    (lambda: search(3, ROWS, 1), TypeError, "queries must be a torch.Tensor.*got int"),
    (lambda: search(ROWS, [[1.0]], 1), TypeError, "candidates chunk 0 must be.*got list"),
    (lambda: search(ROWS.long(), ROWS, 1), TypeError, "queries must be float16.*got torch.int64"),
    (lambda: search(ROWS, np.ones((4, 3), int), 1), TypeError, "candidates must be float16"),
    (lambda: search(ROWS[0], ROWS, 1), ValueError, r"queries must have shape .*got \(3,\)"),
    (lambda: search(ROWS, ROWS[:, :2], 1), ValueError, "candidates must have D = 3.*got 2"),
    (lambda: search([], ROWS, 1), ValueError, "queries must have at least one chunk"),
    (lambda: search(ROWS, ROWS, 1, exclude=IDS), TypeError, "exclude must be a pair"),  # type: ignore[arg-type]
    (lambda: search(ROWS, ROWS, 1, exclude=(IDS[:3], IDS)), ValueError, r"exclude\[0\].*got 3"),
    (lambda: search(ROWS, ROWS, 1, exclude=(IDS, IDS[:3])), ValueError, r"exclude\[1\].*got 3"),
    (
        lambda: search(ROWS, ROWS, 1, exclude=(IDS, ROWS)),
        TypeError,
        r"exclude\[1\] must be an integer",
    ),
]


@pytest.mark.parametrize("case", ERRORS, ids=[message[:40] for _, _, message in ERRORS])
def test_errors(case: tuple[Any, type[Exception], str]) -> None:
    call, error, message = case
    with pytest.raises(error, match=message):
        call()
