"""Inputs that were once answered wrongly, or from memory that was not theirs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fuzz import inputs
from torch import Tensor
from torch.nn.functional import normalize

from grainrank import (
    DenseLevels,
    GrainKeys,
    csl_loss,
    hard_negative_nce_loss,
    info_nce_loss,
    multi_level_ranking_loss,
    multi_similarity_loss,
    positive_ranks,
    siglip_loss,
    smooth_ap_loss,
    smooth_ndcg_loss,
    smooth_recall_loss,
)

N, M, D = 5, 7, 4
Q = torch.randn(N, D, generator=inputs.generator(0))
C = torch.randn(M, D, generator=inputs.generator(1))
BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


@BACKENDS
@pytest.mark.parametrize("function", [smooth_ap_loss, smooth_ndcg_loss, smooth_recall_loss])
def test_smooth_ranks_do_not_hide_a_nan(function: Any, backend: Any) -> None:
    """A step at NaN was 0 in the C++."""
    bad = Q.clone()
    bad[2, 1] = torch.nan
    losses = function(bad, C, reduction="none", backend=backend)
    assert losses.isnan().tolist() == [i == 2 for i in range(N)]


@pytest.mark.parametrize("ties", ["first", "last", "optimistic", "pessimistic"])
@pytest.mark.parametrize("dtype", inputs.FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(4, 33, 17), (4, 33, 16), (1, 63, 4), (3, 5, 1)], ids=str)
def test_exact_ranks_in_every_dtype(
    shape: tuple[int, int, int], dtype: torch.dtype, ties: Any
) -> None:
    """bfloat16 rows were read as float32, twice as long, where AVX512-BF16 multiplies them."""
    n, m, d = shape
    q, c = (inputs.embeddings(rows, d, "integers", dtype, rows) for rows in (n, m))
    levels = DenseLevels(torch.randint(0, 3, (n, m), generator=inputs.generator(2)))
    got, expected = (
        positive_ranks(q, c, levels, ties=ties, normalize=False, backend=backend)  # type: ignore[arg-type]
        for backend in ("cpu", "reference")
    )
    assert torch.equal(got.similarity, expected.similarity)
    assert torch.equal(got.above, expected.above)


@BACKENDS
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"temperature": 1e-300},
            r"temperature must give a logit scale of at most 1e\+20, got 1e-300",
        ),
        ({"logit_scale": 1e300}, r"logit_scale must give .*, got 1e\+300"),
    ],
    ids=["temperature", "scale"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_scales_beyond_every_logit(
    options: dict[str, Any], message: str, dtype: torch.dtype, backend: Any
) -> None:
    """In float32 an error of torch's that named no argument; in float64 the C++ took the logits for
    those of an empty level: the gradient of csl_loss was NaN.
    """
    for loss in (siglip_loss, csl_loss):
        with pytest.raises(ValueError, match=message):
            loss(Q.to(dtype), C.to(dtype), normalize=False, backend=backend, **options)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_gradient_of_a_single_feature(dtype: torch.dtype, backend: Any) -> None:
    """It was a rounding of the terms that cancel, divided by the length of the row."""
    q, c = (torch.randn(n, 1, dtype=dtype, generator=inputs.generator(n)) for n in (7, 9))
    c = (1e-3 * c).requires_grad_()
    info_nce_loss(q, c, temperature=0.05, backend=backend).backward()
    assert c.grad is not None
    assert bool((c.grad == 0).all())


@BACKENDS
def test_a_bias_beyond_float32(backend: Any) -> None:
    """It was an error of torch's that named no argument."""
    options: dict[str, Any] = {"temperature": 1.0, "logit_bias": -1e300, "backend": backend}
    with pytest.raises(ValueError, match="logit_bias must be a number that"):
        siglip_loss(Q, C, **options)
    assert siglip_loss(Q.double(), C.double(), **options).dim() == 0


def similarities(a: Tensor, b: Tensor) -> Tensor:
    return normalize(a, dim=1) @ normalize(b, dim=1).T


def negatives() -> tuple[Tensor, Tensor]:
    """Of `direction="joint"` without levels: the positive of each row, and its negatives' mask and
    similarities, over candidates, queries, and what its own candidate is compared with.
    """
    own = torch.eye(N, M, dtype=torch.bool)
    blocks = similarities(Q, C), similarities(Q, Q), similarities(C[:N], Q), similarities(C[:N], C)
    masks = ~own, ~own[:, :N], ~own[:, :N], ~own
    return torch.cat(blocks, dim=1), torch.cat(masks, dim=1)


@BACKENDS
def test_joint_multi_similarity(backend: Any) -> None:
    """Its scale of the negatives was not that of the further negatives."""
    alpha, beta, base = 2.0, 8.0, 0.25
    s, negative = negatives()
    best = similarities(Q, C).diagonal()
    pull = torch.log1p(torch.exp(-alpha * (best - base))) / alpha
    push = torch.log1p((torch.exp(beta * (s - base)) * negative).sum(dim=1)) / beta
    got = multi_similarity_loss(
        Q, C, alpha=alpha, beta=beta, base=base, direction="joint", backend=backend
    )
    torch.testing.assert_close(got, (pull + push).mean())


@BACKENDS
def test_joint_hard_negatives(backend: Any) -> None:
    """It had no tables of its second view for the further negatives."""
    hardness, scale = 0.5, 3.0
    s, negative = negatives()
    best = scale * similarities(Q, C).diagonal()

    def lse(factor: float) -> Tensor:
        return (factor * scale * s).masked_fill(~negative, -torch.inf).logsumexp(dim=1)

    of_negatives = negative.sum(dim=1).log() + lse(1 + hardness) - lse(hardness)
    expected = torch.nn.functional.softplus(of_negatives - best).mean()
    got = hard_negative_nce_loss(
        Q, C, hardness=hardness, logit_scale=scale, direction="joint", backend=backend
    )
    torch.testing.assert_close(got, expected)


@BACKENDS
def test_joint_with_more_levels_on_a_side(backend: Any) -> None:
    """The scales of the levels were read behind their end; pairs above level 0 do not count."""
    keys = torch.tensor([[0], [0], [1], [1], [2], [2], [3]])
    many = keys.expand(M, 15)
    sides = [
        {
            "query_levels": GrainKeys(of[:N], of[:N]),
            "candidate_levels": GrainKeys(of[:N], of),
        }
        for of in (keys, many)
    ]
    few, more = (
        multi_level_ranking_loss(
            Q, C, GrainKeys(keys[:N], keys), level_temperatures=[0.5], direction="joint",
            backend=backend, **side,
        )
        for side in sides
    )  # fmt: skip
    torch.testing.assert_close(more, few)
