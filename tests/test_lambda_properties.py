"""LambdaLoss: properties, options, blocks and dtypes, memory, and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from descent import descend
from profiling import profiled
from test_lambda_loss import SCHEMES, SETTINGS, D, L, M, N, batch, similarities
from torch import Tensor

from grainrank import DenseLevels, GrainKeys, LambdaLoss, lambda_loss
from grainrank.testing import Shape, make_inputs


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_order_of_a_batch_does_not_matter(scheme: str) -> None:
    q, c, levels = batch(2)
    c[4] += 0.1
    generator = torch.Generator().manual_seed(0)
    of_rows, of_columns = (torch.randperm(n, generator=generator) for n in (N, M))

    def losses(q: Tensor, c: Tensor, levels: Tensor) -> Tensor:
        return lambda_loss(
            q, c, DenseLevels(levels, L), k=5, scheme=scheme, reduction="none", **SETTINGS
        )

    permuted = losses(q[of_rows], c[of_columns], levels[of_rows][:, of_columns])
    torch.testing.assert_close(permuted, losses(q, c, levels)[of_rows], rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_masking_a_candidate_removes_it(scheme: str) -> None:
    """The best negatives of each row, too: they take no place among the k best."""
    q, c, levels = batch(6)
    c[4] += 0.1
    gone = similarities(q, c).sum(dim=0).topk(8).indices
    kept = torch.tensor([j for j in range(M) if j not in gone.tolist()])
    masked = levels.clone()
    masked[:, gone] = -1
    options = {"k": 4, "scheme": scheme, "reduction": "none", **SETTINGS}
    x, y = (c.clone().requires_grad_() for _ in range(2))
    losses = lambda_loss(q, x, DenseLevels(masked, L), **options)
    expected = lambda_loss(q, y[kept], DenseLevels(levels[:, kept], L), **options)
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=0.0)
    losses.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-10, atol=1e-14)
    assert (x.grad[gone] == 0).all()


def test_no_positives_at_all() -> None:
    q, c, _ = batch()
    levels = torch.zeros(N, M, dtype=torch.int8)
    levels[1] = -1
    q.requires_grad_()
    loss = lambda_loss(q, c, DenseLevels(levels, L))
    loss.backward()
    assert loss == 0
    assert torch.equal(q.grad, torch.zeros_like(q))


def test_negatives_outside_of_the_list_have_no_gradient() -> None:
    """But a positive outside has one, and so have all candidates of the k best below it."""
    q = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    angles = torch.linspace(0.1, 1.4, 6, dtype=torch.float64)
    c = torch.stack([angles.cos(), angles.sin()], dim=1).requires_grad_()
    levels = torch.tensor([[0, 1, 0, 0, 2, 0]])
    lambda_loss(q, c, DenseLevels(levels, L), k=2).backward()
    assert (c.grad.abs().sum(dim=1) > 0).tolist() == [True, True, False, False, True, False]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_blocks_change_nothing(scheme: str) -> None:
    """Rows with very different numbers of positives; blocks of one row, pieces of one positive."""
    q, c, levels = batch(7)
    levels[0], levels[1] = 2, 1
    levels[0, ::2] = 1
    found = []
    for workspace in (None, 1e-2, 1e-6):
        x, y = (t.clone().requires_grad_() for t in (q, c))
        loss = lambda_loss(
            x, y, DenseLevels(levels, L), k=4, scheme=scheme, workspace_mb=workspace, **SETTINGS
        )
        loss.backward()
        found.append((loss.detach(), x.grad, y.grad))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-11, atol=1e-13)


def test_options() -> None:
    """Both directions are two calls, prefixes a sum, the memory more candidates."""
    q, c, _ = batch()
    keys = make_inputs(Shape(N, M, D, L), seed=3)
    levels = GrainKeys(keys.query_keys, keys.candidate_keys)
    back = GrainKeys(keys.candidate_keys, keys.query_keys)

    def loss(*args: Any, **options: Any) -> Tensor:
        return lambda_loss(*args, k=3, **options)

    both = loss(q, c, levels, direction="symmetric")
    torch.testing.assert_close(both, (loss(q, c, levels) + loss(c, q, back)) / 2)
    swapped = loss(q, c, levels, direction="candidate_to_query", reduction="none")
    torch.testing.assert_close(swapped, loss(c, q, back, reduction="none"))
    prefixes = loss(q, c, levels, matryoshka_dims=(3, 5), matryoshka_weights=(2.0, 1.0))
    torch.testing.assert_close(
        prefixes, 2 * loss(q[:, :3], c[:, :3], levels) + loss(q, c, levels)
    )  # fmt: skip
    x, whole = c[:9].clone().requires_grad_(), c.clone().requires_grad_()
    with_memory = loss(q, x, levels, memory=c[9:])
    torch.testing.assert_close(with_memory, loss(q, c, levels))
    with_memory.backward()
    loss(q, whole, levels).backward()
    torch.testing.assert_close(x.grad, whole.grad[:9])
    margin = levels.false_negative_margin(0.05)
    assert not torch.equal(loss(q, c, margin), loss(q, c, levels))
    dots = loss(q, c, levels, normalize=False)
    unit = (torch.nn.functional.normalize(x) for x in (q, c))
    torch.testing.assert_close(loss(*unit, levels, normalize=False), loss(q, c, levels))
    assert not torch.equal(dots, loss(q, c, levels))
    torch.testing.assert_close(LambdaLoss(k=3)(q, c, levels), loss(q, c, levels))


def test_gains() -> None:
    q, c, levels = batch()
    source = DenseLevels(levels, L)
    given = lambda_loss(q, c, source, gain=[0.0, 1.0, 3.0, 7.0])
    torch.testing.assert_close(given, lambda_loss(q, c, source))
    nothing = lambda_loss(q, c, source, gain=[0.0, 0.0, 0.0, 0.0])
    assert nothing == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    """From the same values; lists are in the order of float32."""
    q, c, levels = batch(9)
    c[4] += 0.1
    source = DenseLevels(levels, L)
    halves = [x.to(dtype).requires_grad_() for x in (q, c)]
    loss = lambda_loss(*halves, source, k=4)
    assert loss.dtype == torch.float32
    wide = [x.detach().double().requires_grad_() for x in halves]
    expected = lambda_loss(*wide, source, k=4)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0.0)
    loss.backward()
    expected.backward()
    # Of the sums in float32, whose logits are 20 times the similarity; and as they are rounded.
    eps = 100 * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps
    for half, x in zip(halves, wide, strict=True):
        largest = float(x.grad.abs().max())
        torch.testing.assert_close(half.grad.double(), x.grad, rtol=0.0, atol=eps * largest)


def test_the_same_bits_again() -> None:
    q, c, levels = batch(2)
    found = []
    for _ in range(3):
        x = c.float().clone().requires_grad_()
        lambda_loss(q.float(), x, DenseLevels(levels, L), k=4).backward()
        found.append(x.grad)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_autocast() -> None:
    """Similarities are of the dtype of the embeddings, also where a product would not be."""
    q, c, levels = batch(9)
    halves = [x.float().requires_grad_() for x in (q, c)]
    source = DenseLevels(levels, L)
    loss = lambda_loss(*halves, source, k=4)
    found = [loss, *torch.autograd.grad(loss, halves)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = lambda_loss(*halves, source, k=4)
        again = [loss, *torch.autograd.grad(loss, halves)]
    assert all(torch.equal(a, b) for a, b in zip(again, found, strict=True))


@pytest.mark.parametrize("kind", ["margin", "exclude"])
def test_sources_that_ignore_pairs(kind: str) -> None:
    """As a matrix with -1 there."""
    keys = make_inputs(Shape(N, M, D, L), torch.float64, seed=3)
    q, c = keys.queries, keys.candidates
    levels = GrainKeys(keys.query_keys, keys.candidate_keys)
    matrix = levels.block(0, N, M)
    if kind == "exclude":
        ids = torch.arange(N) % 5, torch.arange(M) % 5
        ignored, source = ids[0][:, None] == ids[1], levels.exclude(*ids)
    else:
        s = similarities(q, c)
        best = s.where(matrix > 0, -torch.inf).amax(dim=1, keepdim=True)
        ignored = (matrix == 0) & (s > best - 0.3) & (best > -torch.inf)
        source = levels.false_negative_margin(0.3)
    assert 0 < ignored.sum() < N * M / 2
    q.requires_grad_()
    losses = [
        lambda_loss(q, c, x, k=4, **SETTINGS)
        for x in (source, DenseLevels(matrix.masked_fill(ignored, -1), L), levels)
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0.0)
    assert not torch.equal(losses[0], losses[2])
    found, expected, _ = (torch.autograd.grad(loss, q)[0] for loss in losses)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_memory_is_that_of_the_lists() -> None:
    """Neither the matrix nor an embedding for every entry is stored."""
    n, d, k, workspace = 1200, 64, 10, 2**18
    keys = torch.arange(n)[:, None] // 3
    levels = GrainKeys(keys, keys)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator).requires_grad_()

    def run() -> None:
        lambda_loss(x, x, levels, k=k, workspace_mb=workspace / 2**20).backward()

    run()
    x.grad = None
    measured = profiled(run)
    embeddings, entries = n * d * 4, n * (k + 3) * 8
    assert measured.largest <= max(workspace, embeddings)
    assert measured.peak <= 2 * workspace + 6 * embeddings + 16 * entries
    assert measured.peak < n * n * 4 < n * (k + 3) * d * 4 * 2
    assert measured.products(n, n, d) == 1  # all others are sums over the lists


def test_extreme_similarities() -> None:
    """Logits of 1e4, and candidates that are all equal."""
    q, c, levels = batch()
    for x, y in ((q * 100, c * 100), (q.sign() * 0 + 1, c * 0 + 1)):
        x.requires_grad_()
        loss = lambda_loss(x, y, DenseLevels(levels, L), normalize=False, k=5)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(x.grad).all()
        x.grad = None
    nan = q.detach().clone()
    nan[0, 0] = torch.nan
    assert torch.isnan(lambda_loss(nan, c, DenseLevels(levels, L)))
    with pytest.raises(ValueError, match="queries"):
        lambda_loss(nan, c, DenseLevels(levels, L), nan="raise")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be a cut-off, an integer of 1 or more, got 0"),
        ({"k": 2.0}, "k must be a cut-off"),
        ({"k": True}, "k must be a cut-off"),
        ({"scheme": "ndcg1"}, "scheme must be one of"),
        ({"gain": "log"}, "gain must be one of"),
        ({"gain": [1.0, 1.0, 2.0, 3.0]}, "gain must be 0 for level 0"),
        ({"gain": [0.0, 1.0]}, "gain must have L"),
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"mu": -1.0}, "mu must be positive"),
        ({"temperature": 0.0}, "temperature must be positive"),
        (
            {"direction": "joint", "joint_blocks": ("candidate_query",)},
            "has no form for losses on ranks",
        ),
        ({"backend": "cpu"}, 'backend must be "auto" or "reference", got "cpu"'),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    q, c, levels = batch()
    with pytest.raises(ValueError, match=message):
        lambda_loss(q, c, DenseLevels(levels, L), **options)


def test_a_module_learns_an_order() -> None:
    before, after = descend(LambdaLoss(k=5, temperature=0.2))
    assert after < 0.7 * before
