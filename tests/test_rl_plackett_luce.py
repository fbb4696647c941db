"""Ranked lists drawn by similarities: their probabilities, and what is drawn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from profiling import profiled
from torch import Tensor
from torch.nn.functional import normalize as unit_rows

from grainrank import DenseLevels, GrainKeys, LevelSource
from grainrank.rl import plackett_luce
from grainrank.rl.plackett_luce import plackett_luce_log_prob, sample_plackett_luce

N, M, D, K, G = 3, 11, 4, 4, 6
TEMPERATURE = 0.3


def inputs(
    n: int = N, m: int = M, d: int = D, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, c = (torch.randn(x, d, generator=generator, dtype=torch.float64) for x in (n, m))
    return q.to(dtype).requires_grad_(), c.to(dtype).requires_grad_()


def some_levels(n: int = N, m: int = M, seed: int = 0) -> Tensor:
    """-1..2; at least half of each row may be drawn."""
    levels = torch.randint(-1, 3, (n, m), generator=torch.Generator().manual_seed(seed))
    levels[:, ::2] = levels[:, ::2].clamp_min(0)
    return levels


def some_lists(levels: Tensor, k: int = K, g: int = G, seed: int = 0) -> Tensor:
    """`[G, N, k]`, any order of what may be drawn."""
    keys = torch.rand(g, *levels.shape, generator=torch.Generator().manual_seed(seed))
    return keys.masked_fill(levels < 0, -1).topk(k, dim=2).indices


def logits(q: Tensor, c: Tensor, temperature: Any = TEMPERATURE, normalize: bool = True) -> Tensor:
    q, c = (unit_rows(x.double()) if normalize else x.double() for x in (q, c))
    return q @ c.T / temperature


def by_definition(z: Tensor, lists: Tensor, levels: Tensor) -> Tensor:
    """`[G, N, k]`, one candidate after the other."""
    rows = []
    for n, g in itertools.product(range(lists.shape[1]), range(lists.shape[0])):
        left = [j for j in range(z.shape[1]) if levels[n, j] >= 0]
        draws = []
        for j in lists[g, n].tolist():
            draws.append(z[n, j] - z[n, left].logsumexp(dim=0))
            left.remove(j)
        rows.append(torch.stack(draws))
    g, n, k = lists.shape
    return torch.stack(rows).view(n, g, k).transpose(0, 1)


# probabilities


@pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "dot"])
@pytest.mark.parametrize("with_levels", [True, False], ids=["levels", "all"])
def test_log_prob_and_gradients(with_levels: bool, normalize: bool, backend: str) -> None:
    q, c = inputs()
    t = torch.tensor(TEMPERATURE, dtype=torch.float64, requires_grad=True)
    levels = some_levels() if with_levels else torch.zeros(N, M, dtype=torch.int64)
    lists = some_lists(levels)
    source = DenseLevels(levels, 2) if with_levels else None
    per_draw = plackett_luce_log_prob(
        q, c, lists, temperature=t, levels=source, normalize=normalize, per_draw=True,
        backend=backend,
    )  # fmt: skip
    expected = by_definition(logits(q, c, t, normalize), lists, levels)
    torch.testing.assert_close(per_draw, expected)
    weights = torch.randn(G, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = plackett_luce_log_prob(
        q, c, lists, temperature=t, levels=source, normalize=normalize, backend=backend
    )
    torch.testing.assert_close(whole, expected.sum(dim=2))
    for a, b in zip(
        torch.autograd.grad((whole * weights).sum(), (q, c, t)),
        torch.autograd.grad((expected.sum(dim=2) * weights).sum(), (q, c, t)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_gradcheck() -> None:
    q, c = inputs(2, 6, 3)
    t = torch.tensor(TEMPERATURE, dtype=torch.float64, requires_grad=True)
    lists = some_lists(torch.zeros(2, 6), k=3, g=3)

    def log_prob(q: Tensor, c: Tensor, t: Tensor) -> Tensor:
        return plackett_luce_log_prob(q, c, lists, temperature=t, backend="reference")

    assert torch.autograd.gradcheck(log_prob, (q, c, t))


@pytest.mark.parametrize("m", [3, 5], ids=["all drawn", "some left"])
def test_probabilities_sum_to_one(m: int) -> None:
    q, c = inputs(2, m)
    every = list(itertools.permutations(range(m), 3))
    lists = torch.tensor(every)[:, None].expand(len(every), 2, 3)
    log_prob = plackett_luce_log_prob(q, c, lists, temperature=TEMPERATURE)
    torch.testing.assert_close(log_prob.exp().sum(dim=0), torch.ones(2, dtype=torch.float64))


def test_the_last_one_left_is_certain() -> None:
    q, c = inputs()
    lists = some_lists(torch.zeros(N, M), k=M)
    last = plackett_luce_log_prob(q, c, lists, temperature=0.01, per_draw=True)[..., -1]
    assert torch.equal(last, torch.zeros(G, N, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [2.0**-3, 2.0**-6, 2.0**-9])
def test_low_temperatures_in_float32(temperature: float, backend: str) -> None:
    """The drawn ones have all the mass but e^-64 and less, which no difference to 1 would show.

    Logits are exact in float32; sums of their exponentials are as good as their last bit.
    """
    generator = torch.Generator().manual_seed(0)
    q, c = (torch.randint(-4, 5, (x, D), generator=generator).float() for x in (N, M))
    z = logits(q, c, temperature, normalize=False).requires_grad_()
    lists = z.topk(K, dim=1).indices[None].repeat(G, 1, 1)
    lists[1:4] = lists[1:4].flip(2)
    lists[4:] = some_lists(torch.zeros(N, M))[4:]
    q.requires_grad_()
    found = plackett_luce_log_prob(
        q, c, lists, temperature=temperature, normalize=False, backend=backend
    )
    expected = by_definition(z, lists, torch.zeros(N, M)).sum(dim=2)
    assert found.dtype == torch.float32
    last_bit = 2**-23 * float(z.detach().abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6 + last_bit)
    (d_z,) = torch.autograd.grad(expected.sum(), z)
    (d_q,) = torch.autograd.grad(found.sum(), q)
    d_expected = d_z @ c.double() / temperature
    atol = (1e-6 + last_bit) / temperature
    torch.testing.assert_close(d_q.double(), d_expected, rtol=1e-5, atol=atol)


def test_half_precision_is_that_of_the_rounded_embeddings() -> None:
    q, c = inputs(dtype=torch.bfloat16)
    lists = some_lists(torch.zeros(N, M))
    found = plackett_luce_log_prob(q, c, lists, temperature=TEMPERATURE, normalize=False)
    z = logits(q.detach(), c.detach(), normalize=False)
    expected = by_definition(z, lists, torch.zeros(N, M)).sum(dim=2)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-4)
    found.sum().backward()
    assert q.grad is not None
    assert q.grad.dtype == torch.bfloat16


# what is drawn


def chi_square(lists: Tensor, log_prob: Tensor, every: Tensor) -> float:
    """Of the lists `[G, k]` against the probabilities of all lists `[E, k]`."""
    base = int(every.max()) + 1
    digits = base ** torch.arange(every.shape[1])
    code = (every * digits).sum(dim=1)
    counts = torch.bincount((lists * digits).sum(dim=1), minlength=int(code.max()) + 1)
    assert int(counts.sum()) == int(counts[code].sum()), "only lists that exist"
    expected = log_prob.exp() * len(lists)
    assert float(expected.min()) > 5, "enough of each for the bound"
    return float(((counts[code] - expected) ** 2 / expected).sum())


def chi_square_bound(freedom: int) -> float:
    """About one in 1e5 is above (Wilson and Hilferty; the normal's 4.26)."""
    return freedom * (1 - 2 / (9 * freedom) + 4.26 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize("workspace_mb", [None, 2.0, 1e-4], ids=["one", "two", "each"])
def test_frequencies_whatever_the_chunk(workspace_mb: float | None) -> None:
    """5 candidates, lists of 3: 60 lists, in chunks of all candidates, of a few, and of one."""
    draws = 20_000
    sizes = {None: 5, 2.0: 3, 1e-4: 1}
    workspace = (workspace_mb or 64.0) * 2**20
    ((*_, columns),) = plackett_luce._blocks(1, 5, 3, draws, workspace, False)
    assert columns == sizes[workspace_mb]
    q, c = inputs(1, 5, seed=3)
    lists = sample_plackett_luce(
        q, c, 3, rollouts=draws, temperature=0.7, workspace_mb=workspace_mb,
        generator=torch.Generator().manual_seed(0),
    )[:, 0]  # fmt: skip
    every = torch.tensor(list(itertools.permutations(range(5), 3)))
    log_prob = plackett_luce_log_prob(q, c, every[:, None], temperature=0.7)[:, 0].detach()
    assert chi_square(lists, log_prob, every) < chi_square_bound(59)
    wrong = plackett_luce_log_prob(q, c, every[:, None], temperature=0.9)[:, 0].detach()
    assert chi_square(lists, wrong, every) > chi_square_bound(59), "the test can fail"


@pytest.mark.parametrize("workspace_mb", [None, 0.01])
def test_frequencies_with_levels(workspace_mb: float | None) -> None:
    """Rows have candidates of their own; those of level -1 are never drawn."""
    levels = torch.tensor([[0, -1, 2, 1, -1, 0], [-1, 0, 0, -1, 1, 1]])
    q, c = inputs(2, 6, seed=1)
    lists = sample_plackett_luce(
        q, c, 2, rollouts=6000, temperature=1.0, levels=DenseLevels(levels),
        workspace_mb=workspace_mb, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    for n in range(2):
        left = (levels[n] >= 0).nonzero()[:, 0].tolist()
        every = torch.tensor(list(itertools.permutations(left, 2)))
        both = every[:, None].expand(-1, 2, -1).clone()
        both[:, 1 - n] = torch.tensor((levels[1 - n] >= 0).nonzero()[:2, 0].tolist())
        log_prob = plackett_luce_log_prob(
            q, c, both, temperature=1.0, levels=DenseLevels(levels)
        )[:, n]  # fmt: skip
        statistic = chi_square(lists[:, n], log_prob.detach(), every)
        assert statistic < chi_square_bound(len(every) - 1)


def test_rollouts_and_rows_are_independent() -> None:
    """Uniform over 4 candidates: pairs of first draws of two rollouts, and of two rows."""
    x = torch.ones(2, D), torch.ones(4, D)
    lists = sample_plackett_luce(
        *x, 1, rollouts=8000, temperature=1.0, generator=torch.Generator().manual_seed(0)
    )[..., 0]
    for a, b in ((lists[:4000, 0], lists[4000:, 0]), (lists[:, 0], lists[:, 1])):
        counts = torch.bincount(a * 4 + b, minlength=16)
        expected = len(a) / 16
        statistic = float(((counts - expected) ** 2 / expected).sum())
        assert statistic < chi_square_bound(15)


def test_a_rare_candidate_in_many() -> None:
    """The head of the noise is exact: one candidate of 2^-6 among 4096 equal ones."""
    m, draws = 4097, 3000
    q, c = torch.ones(1, 1, dtype=torch.float32), torch.zeros(m, 1)
    c[7] = math.log(4096 / 63)
    lists = sample_plackett_luce(
        q, c, 1, rollouts=draws, temperature=1.0, normalize=False,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    share = float((lists == 7).double().mean())
    assert abs(share - 1 / 64) < 4.5 * math.sqrt(63 / 64**2 / draws)


def test_cold_lists_are_the_best_candidates() -> None:
    q, c = inputs(dtype=torch.float32)
    lists = sample_plackett_luce(q, c, K, rollouts=2, temperature=1e-6)
    best = logits(q, c).topk(K, dim=1).indices
    assert torch.equal(lists, best.expand(2, N, K))


def test_the_generator_decides() -> None:
    q, c = inputs()
    one, same, other = (
        sample_plackett_luce(
            q, c, K, rollouts=G, temperature=1.0, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (0, 0, 1)
    )
    assert (one.dtype, one.shape, one.requires_grad) == (torch.int64, (G, N, K), False)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert (one.sort(dim=2).values.diff(dim=2) > 0).all(), "without replacement"


# memory

ROWS, COLUMNS = 24, 16384
MATRIX = ROWS * COLUMNS  # bytes, if a pair took one


def many() -> tuple[Tensor, Tensor, LevelSource]:
    q, c = inputs(ROWS, COLUMNS, 2, dtype=torch.float32)
    keys = torch.arange(COLUMNS)[:, None] % 5
    return q.detach().requires_grad_(), c, GrainKeys(keys[:ROWS], keys)


@pytest.mark.parametrize("with_levels", [True, False], ids=["levels", "all"])
def test_draws_keep_to_the_workspace(with_levels: bool) -> None:
    q, c, levels = many()
    found = profiled(
        lambda: sample_plackett_luce(
            q, c, K, rollouts=2, temperature=0.1, workspace_mb=0.25,
            levels=levels if with_levels else None, normalize=False,
        )
    )  # fmt: skip
    lists = 2 * ROWS * K * 64
    assert 2**16 < found.peak <= 2**18 + lists
    assert found.peak < MATRIX


def test_log_prob_is_one_product_without_the_matrix() -> None:
    q, c, levels = many()
    lists = sample_plackett_luce(q, c, K, rollouts=4, temperature=0.1, levels=levels)
    options: dict[str, Any] = {"temperature": 0.1, "workspace_mb": 0.125, "levels": levels}
    found = profiled(lambda: plackett_luce_log_prob(q, c, lists, backend="cpu", **options))
    assert found.products(ROWS, COLUMNS, 2) == 1
    assert found.largest < MATRIX / 2


# errors

LEVELS = DenseLevels(some_levels())
Q, C = (x.detach() for x in inputs())
LISTS = some_lists(torch.zeros(N, M))


def sample(k: Any = K, **options: Any) -> Callable[[], Tensor]:
    x = options.pop("queries", Q), options.pop("candidates", C)
    given = {"rollouts": G, "temperature": 1.0, **options}
    return lambda: sample_plackett_luce(*x, k, **given)


def log_prob(lists: Any = LISTS, **options: Any) -> Callable[[], Tensor]:
    given = {"temperature": 1.0, **options}
    return lambda: plackett_luce_log_prob(Q, C, lists, **given)


def ceiled() -> LevelSource:
    return LEVELS.false_negative_margin(0.1)


ERRORS: dict[str, tuple[type[Exception], str, Callable[[], Tensor]]] = {
    "k": (ValueError, "k must be an integer of 1 or more, got 0", sample(0)),
    "k above M": (ValueError, "k must be at most M = 11", sample(12)),
    "rollouts": (ValueError, "rollouts must be an integer of 1", sample(rollouts=True)),
    "temperature": (ValueError, "temperature must be positive", sample(temperature=0.0)),
    "few candidates": (
        ValueError,
        "fewer candidates of level 0 or more in row 1",
        sample(3, levels=DenseLevels(torch.tensor([[0] * M, [0, 0] + [-1] * (M - 2), [1] * M]))),
    ),
    "NaN": (ValueError, "got NaN in row 2", sample(queries=Q / torch.tensor([[1], [1], [0]]))),
    "levels": (TypeError, "levels must be None or a level source", sample(levels=some_levels())),
    "levels shape": (ValueError, "N, M", sample(levels=DenseLevels(some_levels(2, 2)))),
    "ceilings": (ValueError, "must not depend on the embeddings", sample(levels=ceiled())),
    "workspace": (ValueError, "workspace_mb must be positive", sample(workspace_mb=0)),
    "embeddings": (ValueError, "must have D = 4 features", sample(candidates=C[:, :3])),
    "lists type": (TypeError, "lists must be a torch.Tensor", log_prob([1])),
    "lists dtype": (TypeError, "lists must be int64, got torch.int32", log_prob(LISTS.int())),
    "lists shape": (ValueError, r"= \[G, 3, k\], got \[6, 2, 4\]", log_prob(LISTS[:, 1:])),
    "lists empty": (ValueError, r"got \[6, 3, 0\]", log_prob(LISTS[..., :0])),
    "lists range": (
        ValueError, r"candidates, 0\.\.10, got 0\.\.11", log_prob(LISTS.where(LISTS < 10, 11))
    ),
    "lists negative": (ValueError, r"0\.\.10, got -1", log_prob(LISTS - 1)),
    "repeated": (ValueError, "must not repeat a candidate", log_prob(LISTS * 0)),
    "ignored": (
        ValueError,
        "got one of level -1 in row 2",
        log_prob(levels=DenseLevels(torch.tensor([[0] * M, [0] * M, [-1] * M]), 1)),
    ),
    "15 levels": (
        ValueError, "levels must end at 14", log_prob(levels=DenseLevels(some_levels(), 15))
    ),
    "log_prob ceilings": (ValueError, "must not depend on the emb", log_prob(levels=ceiled())),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    error, text, call = ERRORS[name]
    with pytest.raises(error, match=text):
        call()
