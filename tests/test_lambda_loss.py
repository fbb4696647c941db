"""LambdaLoss against its definition, the published formula, and a public code."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import peers
import pytest
import torch
from profiling import profiled
from torch import Tensor

from grainrank import DenseLevels, GrainKeys, LambdaLoss, lambda_loss
from grainrank.heads.lambda_pairs import LambdaWeights
from grainrank.testing import Shape, make_dense_levels, make_inputs

N, M, D, L = 7, 23, 5, 3
SCHEMES = ("lambdarank", "ndcg2", "ndcg2++")
TEMPERATURE, SIGMA, MU = 0.2, 1.5, 4.0
SETTINGS: dict[str, Any] = {"temperature": TEMPERATURE, "sigma": SIGMA, "mu": MU}
Row = list[tuple[float, int]]  # similarity and level, in the candidates' order
GAINS: dict[str, Callable[[int], float]] = {"exp2": lambda y: 2.0**y - 1, "linear": float}


def batch(seed: int = 0, n: int = N, m: int = M) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, candidates and levels; row 2 has no positive, and candidate 4 is candidate 1."""
    inputs = make_inputs(Shape(n, m, D), torch.float64, seed=seed)
    levels = make_dense_levels(Shape(n, m, D), L, seed=seed)
    levels[2] = levels[2].clamp_max(0)
    inputs.candidates[4] = inputs.candidates[1]
    return inputs.queries, inputs.candidates, levels


def similarities(q: Tensor, c: Tensor) -> Tensor:
    return torch.nn.functional.normalize(q) @ torch.nn.functional.normalize(c).T


def rows(s: Tensor, levels: Tensor) -> list[Row]:
    return [
        [(float(s[i, j]), int(levels[i, j])) for j in range(s.shape[1]) if levels[i, j] >= 0]
        for i in range(s.shape[0])
    ]


def inverse_discount(rank: int) -> float:
    return 1 / math.log2(1 + rank)


def weight(scheme: str, a: int, b: int) -> float:
    """Of two ranks, for each unit of gain."""
    swap = abs(inverse_discount(a) - inverse_discount(b))
    apart = abs(inverse_discount(abs(a - b)) - inverse_discount(abs(a - b) + 1))
    return {"lambdarank": swap, "ndcg2": apart, "ndcg2++": swap + MU * apart}[scheme]


def of_row(row: Row, scheme: str, gain: str, k: int) -> float:
    best_first = sorted(range(len(row)), key=lambda j: (-row[j][0], j))
    rank = {j: place + 1 for place, j in enumerate(best_first)}
    listed = {j for j in rank if rank[j] <= k} | {j for j in rank if row[j][1] > 0}
    gains = [GAINS[gain](y) for _, y in row]
    ideal = sum(
        g * inverse_discount(place + 1)
        for place, g in enumerate(sorted(gains, reverse=True)[:k])
    )  # fmt: skip
    total = 0.0
    for a in listed:
        for b in listed:
            if row[a][1] <= row[b][1] or min(rank[a], rank[b]) > k:
                continue
            x = SIGMA * (row[a][0] - row[b][0]) / TEMPERATURE
            step = abs(gains[a] - gains[b]) / ideal * weight(scheme, rank[a], rank[b])
            total += step * math.log2(1 + math.exp(-x))
    return total


@pytest.mark.parametrize("gain", GAINS)
@pytest.mark.parametrize("k", [1, 3, 10, 40])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_equals_the_definition(scheme: str, k: int, gain: str) -> None:
    q, c, levels = batch(seed=k)
    found = rows(similarities(q, c), levels)
    expected = torch.tensor([of_row(r, scheme, gain, k) for r in found], dtype=torch.float64)
    source = DenseLevels(levels, L)
    options = {"k": k, "scheme": scheme, "gain": gain, **SETTINGS}
    losses = lambda_loss(q, c, source, reduction="none", **options)
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)
    assert losses[2] == 0
    mean = lambda_loss(q, c, source, **options)
    with_positive = int((levels > 0).any(dim=1).sum())
    torch.testing.assert_close(mean, expected.sum() / with_positive, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ties_rank_by_number(scheme: str) -> None:
    """Similarities that are exactly equal, in every row."""
    q = torch.eye(3, dtype=torch.float64)
    c = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]], dtype=q.dtype)
    levels = torch.tensor([[0, 0, 1, 2, -1], [2, 0, -1, 0, 1], [1, 2, 0, 0, 3]])
    expected = [of_row(r, scheme, "exp2", 2) for r in rows(q @ c.T, levels)]
    losses = lambda_loss(
        q, c, DenseLevels(levels, L), k=2, scheme=scheme, reduction="none", **SETTINGS
    )
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=q.dtype), rtol=1e-12, atol=0.0)


def dense(q: Tensor, c: Tensor, levels: Tensor, scheme: str, k: int) -> Tensor:
    """The loss of all rows together, over all pairs of all candidates, with constant weights."""
    s = similarities(q, c)
    best_first = s.detach().masked_fill(levels < 0, -torch.inf)
    rank = 1 + best_first.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    listed = (levels > 0) | ((levels == 0) & (rank <= k))
    of_pair = [
        [torch.zeros(M, M, dtype=s.dtype), listed[i][:, None] & listed[i][None, :]]
        for i in range(len(s))
    ]
    total = s.new_zeros(())
    for i, (weights, pairs) in enumerate(of_pair):
        gains = 2.0 ** levels[i].clamp_min(0).double() - 1
        places = torch.arange(1, M + 1).double()
        ideal = (gains.sort(descending=True).values / torch.log2(1 + places))[:k].sum()
        pairs &= levels[i][:, None] > levels[i][None, :]
        pairs &= torch.minimum(rank[i][:, None], rank[i][None, :]) <= k
        for a, b in pairs.nonzero().tolist():
            weights[a, b] = weight(scheme, int(rank[i, a]), int(rank[i, b]))
            weights[a, b] *= (gains[a] - gains[b]).abs() / ideal
        x = SIGMA * (s[i][:, None] - s[i][None, :]) / TEMPERATURE
        total = total + (weights * torch.log2(1 + torch.exp(-x))).sum()
    return total


@pytest.mark.parametrize("workspace", [None, 1e-4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradient_of_the_dense_form(scheme: str, workspace: float | None) -> None:
    q, c, levels = batch(3)
    inputs = q.requires_grad_(), c.requires_grad_()
    ours = lambda_loss(
        *inputs, DenseLevels(levels, L), k=4, scheme=scheme, reduction="sum",
        workspace_mb=workspace, **SETTINGS,
    )  # fmt: skip
    theirs = dense(*inputs, levels, scheme, 4)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0.0)
    found, expected = (torch.autograd.grad(loss, inputs) for loss in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("direction", ["query_to_candidate", "candidate_to_query", "symmetric"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradcheck(scheme: str, direction: str) -> None:
    """Weights are constant where no two similarities change places."""
    q, c, levels = batch(5, 4, 9)
    source = DenseLevels(levels, L)
    c[4] += 0.1  # two that are equal would change places

    def loss(q: Tensor, c: Tensor) -> Tensor:
        return lambda_loss(
            q, c, source, k=3, scheme=scheme, direction=direction, matryoshka_dims=(3, 5),
            **SETTINGS,
        )  # fmt: skip

    inputs = q.requires_grad_(), c.requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-7, atol=1e-5)


def test_upstream_gradient_of_rows() -> None:
    q, c, levels = batch(1)
    q.requires_grad_()
    upstream = torch.linspace(-1, 2, N, dtype=q.dtype)
    losses = lambda_loss(q, c, DenseLevels(levels, L), reduction="none", k=4, **SETTINGS)
    (found,) = torch.autograd.grad(losses, q, upstream)
    for i in range(N):
        one = DenseLevels(levels[i : i + 1], L)
        loss = lambda_loss(q[i : i + 1], c, one, reduction="sum", k=4, **SETTINGS)
        (expected,) = torch.autograd.grad(loss, q)
        torch.testing.assert_close(found[i], upstream[i] * expected[i], rtol=1e-9, atol=1e-12)


def published(row: Row, scheme: str) -> float:
    """The untruncated formulas of the paper, over the places of the ranking, from the best on."""
    ranking = sorted(row, key=lambda pair: -pair[0])
    ideal = sum(
        (2**y - 1) / math.log2(place + 2)
        for place, y in enumerate(sorted((y for _, y in row), reverse=True))
    )
    if ideal == 0:
        return 0.0
    likelihood = 0.0
    for i, (s_i, y_i) in enumerate(ranking, start=1):
        for j, (s_j, y_j) in enumerate(ranking, start=1):
            if y_i > y_j:
                rho = abs(1 / math.log2(1 + i) - 1 / math.log2(1 + j))
                d = abs(i - j)
                delta = abs(1 / math.log2(1 + d) - 1 / math.log2(1 + (d + 1)))
                exponent = {"lambdarank": rho, "ndcg2": delta, "ndcg2++": rho + MU * delta}[scheme]
                exponent *= abs(2**y_i - 2**y_j) / ideal
                p = 1 / (1 + math.exp(-SIGMA * (s_i - s_j) / TEMPERATURE))
                likelihood += math.log2(p**exponent)
    return -likelihood


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_large_k_is_the_published_loss(scheme: str) -> None:
    q, c, levels = batch(8)
    c[4] += 0.1
    found = rows(similarities(q, c), levels)
    expected = torch.tensor([published(row, scheme) for row in found], dtype=torch.float64)
    for k in (M, 10 * M):
        losses = lambda_loss(
            q, c, DenseLevels(levels, L), k=k, scheme=scheme, reduction="none", **SETTINGS
        )
        torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)


class Scorer(torch.nn.Module):
    """A cross-encoder whose scores are known."""

    num_labels, device = 1, torch.device("cpu")

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def preprocess(self, pairs: list[Any], prompt: Any = None, task: Any = None) -> dict[str, Any]:
        return {"at": torch.tensor([int(document) for _, document in pairs])}

    def forward(self, tokens: dict[str, Any]) -> dict[str, Tensor]:
        return {"scores": self.scores[tokens["at"]]}


@pytest.mark.parametrize(
    ("scheme", "theirs"),
    [
        ("lambdarank", "LambdaRankScheme"),
        ("ndcg2", "NDCGLoss2Scheme"),
        ("ndcg2++", "NDCGLoss2PPScheme"),
    ],
)
def test_sentence_transformers(scheme: str, theirs: str) -> None:
    """Without a cut-off; its logits are float32, and it divides by the number of pairs."""
    peers.sentence_transformers()
    losses = importlib.import_module("sentence_transformers.cross_encoder.losses")
    q, c, levels = batch(4)
    c[4] += 0.1
    levels = levels.clamp_min(0)
    numbers = [[str(i * M + j) for j in range(M)] for i in range(N)]
    weighting = getattr(losses, theirs)(*([MU] if scheme == "ndcg2++" else []))
    s = similarities(q.requires_grad_(), c)
    module = losses.LambdaLoss(Scorer((s / TEMPERATURE).flatten()), weighting, sigma=SIGMA)
    expected = module([[""] * N, numbers], list(levels))
    source = DenseLevels(levels, L)
    total = lambda_loss(q, c, source, k=M, scheme=scheme, reduction="sum", **SETTINGS)
    pairs = sum(int((row[:, None] > row[None, :]).sum()) for row in levels)
    torch.testing.assert_close((total / pairs).float(), expected, rtol=1e-5, atol=0.0)
    found, wanted = (torch.autograd.grad(x, q)[0] for x in (total / pairs, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


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


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_of_ranks_far_apart(scheme: str) -> None:
    """Differences of discounts keep their digits in float32."""
    rank, other = torch.tensor([1, 2, 7, 10]), torch.tensor([2, 9, 30_000, 1_000_000])
    found = LambdaWeights(scheme, MU).of(rank, other, torch.float32)  # type: ignore[arg-type]
    expected = [weight(scheme, a, b) for a, b in zip(rank.tolist(), other.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=0.0)


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
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 12, generator=generator)
    keys = torch.stack([torch.arange(40) // 20, torch.arange(40) // 4], dim=1)
    ids = torch.arange(40)
    levels = GrainKeys(keys, keys).exclude(ids, ids)
    weight = torch.randn(12, 8, generator=generator).requires_grad_()
    loss = LambdaLoss(k=5, temperature=0.2)
    optimizer = torch.optim.Adam([weight], lr=0.05)
    before = float(loss(x @ weight, x @ weight, levels).detach())
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(x @ weight, x @ weight, levels)
        value.backward()
        optimizer.step()
    assert float(value.detach()) < 0.7 * before
