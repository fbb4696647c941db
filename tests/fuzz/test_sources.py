"""What reaches the C++ was checked: every index that it reads through, once for each call.

The checks, and what the C++ reads with what they let through (csrc/level_args.h, rank_args.h):

    ends, indices of SparseLevels   SparseLevels.__init__: rise from 0 to nnz, 0..M - 1, once a pair
    levels                          SparseLevels, DenseLevels; int8 matrices by the pass itself
    keys, ids, curated ids          compared alone; narrowed with equality kept (cpu_levels.narrow)
    rows of keys, ids, references,  LevelSource.check, against N and M + Q
      matrices, thresholds
    thresholds, their stride        SimilarityBands.__init__: [1, L] or [N, L], L in 1..15
    prefixes of the features        check_dims: 1..D
    rows and columns                check_embeddings, check_memory: below 2^31
    columns and levels of ranks     made by the passes from their own counts
"""

# ruff: noqa: E501  (one case a line reads better)

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from fuzz import inputs
from fuzz.oracle import TRIED, refusal
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import grainrank
from grainrank import (
    DenseLevels,
    EmbeddingQueue,
    GrainKeys,
    SimilarityBands,
    SparseLevels,
    multi_level_ranking_loss,
    positive_ranks,
)

Q = torch.randn(3, 4, generator=inputs.generator(0))
C = torch.randn(5, 4, generator=inputs.generator(1))


def many(rows: int) -> Tensor:
    """`[rows, 1]` in four bytes."""
    return torch.zeros(1, 1).expand(rows, 1)


@pytest.mark.parametrize("function", [multi_level_ranking_loss, positive_ranks])
def test_more_rows_than_the_passes_can_number(function: Any) -> None:
    options = {"temperature": 1.0, "backend": "cpu"}
    with pytest.raises(
        ValueError, match=r"candidates must have fewer than 2\^31 rows, got 2147483648"
    ):
        function(Q[:, :1], many(2**31), **options)
    with pytest.raises(ValueError, match=r"queries must have fewer than 2\^31 rows"):
        function(many(2**31), C[:, :1], **options)


def test_more_rows_with_a_memory_than_the_passes_can_number() -> None:
    with pytest.raises(ValueError, match=r"memory must leave fewer than 2\^31 candidates"):
        multi_level_ranking_loss(
            Q[:, :1], C[:, :1], temperature=1.0, backend="cpu", memory=many(2**31 - 5)
        )


def test_embeddings_that_have_no_address() -> None:
    sparse = Q.to_sparse()
    with pytest.raises(
        TypeError, match=r"queries must be a dense tensor, got layout torch\.sparse_coo"
    ):
        multi_level_ranking_loss(sparse, C, temperature=1.0, backend="cpu")
    with pytest.raises(TypeError, match="query_keys must be a dense tensor"):
        GrainKeys(torch.ones(3, 1).long().to_sparse(), torch.ones(5, 1).long())


def test_a_negated_view_is_read_as_it_shows() -> None:
    """`torch.conj(x).imag` has another sign in memory; of one feature and row it is contiguous."""
    x = torch.tensor([[0.75]])
    negated = torch.complex(x, -x).conj().imag
    assert negated.is_neg()
    assert negated.is_contiguous()
    ranks = positive_ranks(negated, torch.ones(1, 1), normalize=False, backend="cpu")
    assert ranks.similarity.tolist() == [0.75]


COLUMNS = torch.tensor([0, 1, 4])
ONES = torch.ones(3, dtype=torch.int64)
ROWS_OF = torch.tensor([0, 1, 2, 3])
CASES: dict[str, tuple[Any, type[Exception], str]] = {
    "no M": (lambda: SparseLevels(ROWS_OF, COLUMNS, ONES, 5.0), TypeError, "num_candidates must be an int"),
    "negative M": (lambda: SparseLevels(torch.zeros(4).long(), ONES[:0], ONES[:0], -1), ValueError, "num_candidates must lie"),
    "M of 2^31": (lambda: SparseLevels(ROWS_OF, COLUMNS, ONES, 2**31), ValueError, "num_candidates must lie"),
    "positive M": (lambda: SimilarityBands.from_positives(C, [0.5], torch.tensor([0, 5])), ValueError, r"positives must lie in 0\.\.4.* got 0\.\.5"),
    "positive -1": (lambda: SimilarityBands.from_positives(C, [0.5], torch.tensor([-1])), ValueError, r"positives .* got -1\.\.-1"),
    "a mask of positives": (lambda: SimilarityBands.from_positives(C, [0.5], C[:, 0] > 0), TypeError, "positives must hold integers"),
    "no queries": (lambda: SimilarityBands.from_positives(C, [0.5], num_queries=-1), ValueError, "num_queries must be an integer of 1 or more"),
    "thresholds None": (lambda: SimilarityBands(Q, C, None), TypeError, "thresholds must be numbers"),
    "thresholds of text": (lambda: SimilarityBands(Q, C, ["high"]), TypeError, r"thresholds must be numbers .*got \['high'\]"),
    "complex thresholds": (lambda: SimilarityBands(Q, C, torch.tensor([1j])), TypeError, "thresholds must be real"),
    "no quantiles": (lambda: SimilarityBands.from_quantiles(Q, C, []), ValueError, r"quantiles must be ascending in 0\.\.1, 1 to 15 numbers, got \[\]"),
    "one quantile": (lambda: SimilarityBands.from_quantiles(Q, C, 0.5), ValueError, "quantiles .* got 0.5"),
    "NaN quantile": (lambda: SimilarityBands.from_quantiles(Q, C, [float("nan")]), ValueError, r"quantiles .* got \[nan\]"),
    "quantiles of nothing": (lambda: SimilarityBands.from_quantiles(Q, C[:0], [0.5]), ValueError, "candidate_reference must have at least one row"),
    "quantiles of no query": (lambda: SimilarityBands.from_quantiles(Q[:0], C, [0.5]), ValueError, "query_reference must have at least one row"),
    "reference of one": (lambda: DenseLevels(ONES[None]).false_negative_margin(0.1, reference=Q), TypeError, "reference must be a pair"),
    "curated of one": (lambda: DenseLevels(ONES[None]).false_negative_margin(0.1, curated=ONES), TypeError, "curated must be a pair"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_source_refuses(case: str) -> None:
    make, error, message = CASES[case]
    with pytest.raises(error, match=message):
        make()


@given(spec=inputs.levels(), shape=st.tuples(inputs.ROWS, inputs.COLUMNS))
def test_levels_are_those_of_the_definition(spec: inputs.Levels, shape: tuple[int, int]) -> None:
    """The counts of every level and row, with the C++ and as `LevelSource.block` gives them."""
    n, m = shape
    made: list[Any] = []

    def call() -> None:
        source = inputs.make_levels(spec, n, m) or DenseLevels(torch.eye(n, m, dtype=torch.int8))
        q, c = torch.ones(n, 1), torch.ones(m, 1)
        stats = grainrank.level_statistics(q, c, source, temperature=1.0, backend="cpu")
        made[:] = [source, stats.count]

    error = refusal(call)
    TRIED["right" if error is None else "refused"] += 1
    if error is not None or isinstance(made[0], grainrank.levels.FalseNegativeMargin):
        return
    source, count = made
    level = source.block(0, n, m)
    expected = torch.stack([(level == k).sum(dim=1) for k in range(source.max_level + 1)], dim=1)
    assert torch.equal(count, expected)


@given(
    size=st.sampled_from((1, 2, 5, 7)),
    dim=st.sampled_from((1, 3)),
    num_keys=st.sampled_from((0, 1, 2)),
    pushes=st.lists(st.sampled_from((0, 1, 2, 3, 5, 7, 8, 20)), max_size=6),
    layout=st.sampled_from(inputs.LAYOUTS[:6]),
    wrong=st.sampled_from((None, None, None, "features", "rows", "keys")),
)
def test_a_queue_holds_the_last(
    size: int, dim: int, num_keys: int, pushes: list[int], layout: str, wrong: str | None
) -> None:
    queue = EmbeddingQueue(size, dim, num_keys)
    held: list[tuple[list[float], list[int]]] = []
    for i, rows in enumerate(pushes):
        x = torch.randn(rows, dim, generator=inputs.generator(i))
        keys = torch.randint(-(2**63), 2**63 - 1, (rows, num_keys), generator=inputs.generator(i))
        given_x = torch.cat([x, x[:, :1]], dim=1) if wrong == "features" else x
        given_keys: Tensor | None = torch.cat([keys, keys]) if wrong == "rows" and rows else keys
        if (wrong == "keys") != (num_keys == 0):
            given_keys = None if wrong == "keys" else given_keys
        if num_keys == 0 and wrong is None:
            given_keys = None
        error = refusal(partial(queue.push, inputs.laid_out(given_x, layout), given_keys))
        TRIED["right" if error is None else "refused"] += 1
        if error is None:
            held += zip(x.tolist(), keys.tolist(), strict=True)
    last = sorted(held[-size:])
    assert sorted(zip(queue.embeddings.tolist(), queue.keys.tolist(), strict=True)) == last
