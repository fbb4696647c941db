"""Policies: densities, divergences, what they draw, and their gradients of expected rewards."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from grainrank.rl.grpo import group_advantages, grpo_loss
from grainrank.rl.plackett_luce import plackett_luce_log_prob, sample_plackett_luce
from grainrank.rl.policies import GaussianPolicy, VonMisesFisherPolicy

Policy = GaussianPolicy | VonMisesFisherPolicy
CONCENTRATIONS = (0.01, 1.0, 7.3, 100.0, 1e4)
FEATURES = (2, 3, 4, 17, 768, 4096)
KS = math.sqrt(-math.log(1e-6 / 2) / 2)  # of Kolmogorov's distance times sqrt(n), at 1e-6


def embeddings(n: int = 3, d: int = 5, seed: int = 0, dtype: Any = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# densities


def test_gaussian_log_prob() -> None:
    m, x = embeddings(), embeddings(12).view(4, 3, 5)
    expected = torch.distributions.Normal(m, 0.3).log_prob(x).sum(dim=-1)
    torch.testing.assert_close(GaussianPolicy(0.3).log_prob(x, m), expected)


@pytest.mark.parametrize("concentration", [0.01, 1.0, 20.0, 900.0])
@pytest.mark.parametrize("features", [2, 3, 6])
def test_von_mises_fisher_integrates_to_one(features: int, concentration: float) -> None:
    """Over the angle t to the embedding, whose circle has the radius sin t."""
    policy = VonMisesFisherPolicy(concentration)
    nodes, weights = np.polynomial.legendre.leggauss(600)
    t = torch.from_numpy((nodes + 1) * math.pi / 2)
    w = torch.from_numpy(weights * math.pi / 2)
    x = torch.zeros(len(t), 1, features, dtype=torch.float64)
    x[:, 0, 0], x[:, 0, 1] = t.cos(), t.sin()
    embedding = torch.zeros(1, features, dtype=torch.float64)
    embedding[0, 0] = 3.0
    density = policy.log_prob(x, embedding)[:, 0].exp()
    rest = features - 1  # the sphere of the other coordinates
    area = 2 * math.pi ** (rest / 2) / math.gamma(rest / 2)
    mass = area * t.sin() ** (features - 2) * density * w
    assert float(mass.sum()) == pytest.approx(1, abs=1e-10)
    assert float((mass * t.cos()).sum()) == pytest.approx(policy.mean_cosine(features), abs=1e-10)


@pytest.mark.parametrize("concentration", CONCENTRATIONS)
@pytest.mark.parametrize("features", FEATURES)
def test_bessel_functions(features: int, concentration: float) -> None:
    mp = pytest.importorskip("mpmath", reason="comes with torch's own requirements")
    with mp.workdps(40):
        order, k = mp.mpf(features) / 2 - 1, mp.mpf(concentration)
        bessel = mp.besseli(order, k)
        ratio = float(mp.besseli(order + 1, k) / bessel)
        constant = float(order * mp.log(k) - (order + 1) * mp.log(2 * mp.pi) - mp.log(bessel))
    policy = VonMisesFisherPolicy(concentration)
    assert policy.mean_cosine(features) == pytest.approx(ratio, rel=1e-12)
    m = normalize(embeddings(1, features))
    error = float(policy.log_prob(m[None], m)) - (constant + concentration)
    assert abs(error) <= 1e-12 * max(1, abs(constant))


def test_mean_cosine_on_the_sphere() -> None:
    for k in (0.5, 3.0, 1e3, 1e7):
        expected = 1 / math.tanh(k) - 1 / k
        assert VonMisesFisherPolicy(k).mean_cosine(3) == pytest.approx(expected, rel=1e-12)


def test_the_rule_for_the_concentration() -> None:
    assert VonMisesFisherPolicy(3634.0).mean_cosine(768) == pytest.approx(0.9, abs=1e-3)


def test_the_rule_for_the_scale() -> None:
    q = normalize(embeddings(8, 768))
    drawn = GaussianPolicy(0.48 / math.sqrt(768)).sample(q, rollouts=100, generator=generator())
    cosine = torch.cosine_similarity(drawn, q, dim=-1)
    assert float(cosine.mean()) == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("policy", [GaussianPolicy(0.3), VonMisesFisherPolicy(20.0)], ids=str)
def test_gradients(policy: Policy) -> None:
    m, r = embeddings().requires_grad_(), embeddings(seed=1)
    x = policy.sample(m, rollouts=2, generator=generator())
    assert torch.autograd.gradcheck(lambda m: policy.log_prob(x, m), (m,))
    assert torch.autograd.gradcheck(lambda m: policy.kl(m, r), (m,))


# divergences


def test_gaussian_kl() -> None:
    m, r = embeddings(), embeddings(seed=1)
    one, other = (torch.distributions.Normal(x, 0.3) for x in (m, r))
    expected = torch.distributions.kl_divergence(one, other).sum(dim=-1)
    torch.testing.assert_close(GaussianPolicy(0.3).kl(m, r), expected)


@pytest.mark.parametrize("concentration", [0.5, 30.0])
def test_von_mises_fisher_kl_on_the_circle(concentration: float) -> None:
    policy = VonMisesFisherPolicy(concentration)
    m, r = embeddings(1, 2), embeddings(1, 2, seed=1)
    t = torch.arange(4000, dtype=torch.float64) * (2 * math.pi / 4000)
    x = torch.stack([t.cos(), t.sin()], dim=1)[:, None]
    p, q = (policy.log_prob(x, e)[:, 0] for e in (m, r))
    expected = (p.exp() * (p - q)).sum() * (2 * math.pi / 4000)
    torch.testing.assert_close(policy.kl(m, r)[0], expected)


def test_kl_of_near_directions_in_float32() -> None:
    m = torch.tensor([[1.0, 0.0, 0.0]])
    r = torch.tensor([[1.0, 1e-4, 0.0]])
    policy = VonMisesFisherPolicy(100.0)
    expected = 100 * policy.mean_cosine(3) * 0.5e-8
    assert float(policy.kl(m, r)) == pytest.approx(expected, rel=1e-5)
    assert float(policy.kl(r, r)) == 0


# what is drawn


@pytest.mark.parametrize("features", [1, 3, 400])
def test_gaussian_draws(features: int) -> None:
    m = embeddings(2, features) * 5
    x = GaussianPolicy(0.3).sample(m, rollouts=4000, generator=generator())
    z = ((x - m) / 0.3).flatten()
    assert abs(float(z.mean())) < 4.5 / math.sqrt(len(z))
    assert abs(float(z.square().mean()) - 1) < 4.5 * math.sqrt(2 / len(z))
    each = (x - m).mean(dim=0) / 0.3 * math.sqrt(4000)  # a standard normal each
    assert float(each.abs().max()) < 5.5


def cosine_distribution(features: int, concentration: float, cosine: Tensor) -> Tensor:
    """Its distribution function at these values, from the trapezoid rule over the angle."""
    t = torch.linspace(0, math.pi, 200_001, dtype=torch.float64)
    log = concentration * (t.cos() - 1) + (features - 2) * t.sin().clamp_min(1e-300).log()
    density = (log - log.max()).exp()
    mass = torch.cumulative_trapezoid(density, t)
    mass = torch.cat([mass.new_zeros(1), mass / mass[-1]])
    at = torch.acos(cosine.clamp(-1, 1))
    right = torch.searchsorted(t, at).clamp(1, len(t) - 1)
    share = (at - t[right - 1]) / (t[right] - t[right - 1])
    return 1 - (mass[right - 1] + share * (mass[right] - mass[right - 1]))


@pytest.mark.parametrize("concentration", [0.01, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("features", [2, 3, 4, 9, 300])
def test_von_mises_fisher_draws(features: int, concentration: float) -> None:
    """Cosines have the right distribution, and all directions around the embedding are alike."""
    policy, g = VonMisesFisherPolicy(concentration), 4000
    embedding = embeddings(1, features, seed=features)
    x = policy.sample(embedding * 7, rollouts=g, generator=generator(1))[:, 0]
    torch.testing.assert_close(x.norm(dim=1), torch.ones(g, dtype=torch.float64))
    m = normalize(embedding)[0]
    cosine = x @ m
    mean = policy.mean_cosine(features)
    variance = 1 - mean**2 - (features - 1) * mean / concentration
    assert abs(float(cosine.mean()) - mean) < 4.5 * math.sqrt(variance / g)
    expected = cosine_distribution(features, concentration, cosine.sort().values)
    steps = torch.arange(g + 1, dtype=torch.float64) / g
    distance = torch.maximum((expected - steps[:-1]).abs(), (expected - steps[1:]).abs()).max()
    assert float(distance) < KS / math.sqrt(g)
    # Across the embedding each coordinate has the mean 0 and the variance mean / concentration.
    basis = torch.linalg.svd(m[None]).Vh[1:]  # [D - 1, D]
    across = x @ basis.T * math.sqrt(concentration / mean)
    assert float(across.mean(dim=0).abs().max()) < 5.5 / math.sqrt(g)
    assert float(across.square().mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / g))


def test_directions_are_uniform_on_the_circle_around() -> None:
    x = VonMisesFisherPolicy(5.0).sample(
        torch.tensor([[0.0, 0.0, 2.0]]).double(), rollouts=20_000, generator=generator()
    )[:, 0]
    turn = (torch.atan2(x[:, 1], x[:, 0]) / (2 * math.pi) + 0.5).sort().values
    steps = (torch.arange(len(turn)) + 0.5) / len(turn)
    assert float((turn - steps).abs().max()) < KS / math.sqrt(len(turn))


@pytest.mark.parametrize("axis", [0, 1, 4], ids=["first", "second", "last"])
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["plus", "minus"])
def test_embeddings_on_an_axis(sign: float, axis: int) -> None:
    m = torch.zeros(1, 5)
    m[0, axis] = sign
    x = VonMisesFisherPolicy(1e4).sample(m, rollouts=50, generator=generator())[:, 0]
    assert float((x @ m[0]).min()) > 0.995
    assert float(x.norm(dim=1).sub(1).abs().max()) < 1e-6


@pytest.mark.parametrize("policy", [GaussianPolicy(0.3), VonMisesFisherPolicy(1e4)], ids=str)
class TestSamples:
    @pytest.mark.parametrize(
        "dtype", [torch.bfloat16, torch.float32, torch.float64], ids=["bf16", "fp32", "fp64"]
    )
    def test_dtype(self, policy: Policy, dtype: torch.dtype) -> None:
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        m = embeddings(4, 4096, dtype=dtype).requires_grad_()
        x = policy.sample(m, rollouts=2)
        assert (x.dtype, x.shape, x.requires_grad) == (expected, (2, 4, 4096), False)
        assert torch.isfinite(x).all()
        log_prob = policy.log_prob(x, m)
        assert (log_prob.dtype, log_prob.shape) == (expected, (2, 4))
        assert policy.kl(m, m.detach()).dtype == expected

    def test_the_generator_decides(self, policy: Policy) -> None:
        m = embeddings(4, 8)
        one, same, other = (policy.sample(m, 2, generator(seed)) for seed in (0, 0, 1))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert not torch.equal(one[0], one[1])

    def test_no_queries(self, policy: Policy) -> None:
        m = torch.empty(0, 8)
        assert policy.sample(m, rollouts=2).shape == (2, 0, 8)


def test_rejection_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every proposal is refused, as by a generator that is stuck."""
    stuck = torch.tensor([0.5, 0.1, 0.0], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda three, n, **_: stuck[:, None].expand(three, n))
    with pytest.raises(RuntimeError, match="rejected 256 times"):
        VonMisesFisherPolicy(10.0).sample(embeddings(), rollouts=2)


@pytest.mark.parametrize("concentration", [1e-3, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("features", [2, 3, 50, 4096])
def test_two_of_three_proposals_are_accepted(
    features: int, concentration: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposed = []
    rand = torch.rand

    def counted(*size: int, **options: Any) -> Tensor:
        proposed.append(size[1])
        return rand(*size, **options)

    monkeypatch.setattr(torch, "rand", counted)
    VonMisesFisherPolicy(concentration)._drop(torch.Size([3000]), embeddings(1, features), None)
    assert 3000 / sum(proposed) > 0.63
    assert len(proposed) < 20


# exact policy gradients

ROWS, DRAWS = 20_000, 4  # groups, each an estimate of its own


def agrees(d_rows: Tensor, exact: Tensor) -> None:
    """Estimates `[ROWS, ..]` have this mean, within 4 standard errors in every component.

    With the mean of all four rollouts as the baseline it would be 3/4 of it.
    """
    error = d_rows.std(dim=0) / math.sqrt(ROWS)
    mean = d_rows.mean(dim=0)
    assert float(((mean - exact) / error).abs().max()) < 4
    assert float(((0.75 * mean - exact) / error).abs().max()) > 4, "the test can fail"


def estimates(log_probs: Tensor, rewards: Tensor, rows: Tensor) -> Tensor:
    """Ascent directions of each group; the loss is their mean."""
    advantages = group_advantages(rewards, normalize="none", baseline="leave_one_out")
    (d,) = torch.autograd.grad(grpo_loss(log_probs, None, advantages), rows)
    return -d * len(rows)


class Lists:
    """4 candidates and lists of 2: 12 lists, each with a reward."""

    def __init__(self) -> None:
        self.q, self.c = embeddings(1, 3, seed=2), embeddings(4, 3, seed=3)
        self.every = torch.tensor(list(itertools.permutations(range(4), 2)))
        self.rewards = torch.zeros(4, 4, dtype=torch.float64)
        self.rewards[self.every[:, 0], self.every[:, 1]] = embeddings(1, 12, seed=4)[0]

    def reward(self, lists: Tensor) -> Tensor:
        return self.rewards[lists[..., 0], lists[..., 1]]

    def log_prob(self, lists: Tensor, q: Tensor) -> Tensor:
        return plackett_luce_log_prob(q, self.c, lists, temperature=0.5)

    def exact(self) -> Tensor:
        """Of the expected reward, from the logits and the definition alone."""
        q = self.q.clone().requires_grad_()
        p = (normalize(q) @ normalize(self.c).T / 0.5).softmax(dim=1)[0]
        a, b = self.every.T
        expected = (p[a] * p[b] / (1 - p[a]) * self.reward(self.every)).sum()
        return torch.autograd.grad(expected, q)[0][0]


def test_enumerated_reinforce_is_the_gradient_of_the_expected_reward() -> None:
    toy = Lists()
    q = toy.q.clone().requires_grad_()
    log_prob = toy.log_prob(toy.every[:, None], q)[:, 0]
    weights = log_prob.detach().exp() * toy.reward(toy.every)
    (found,) = torch.autograd.grad((weights * log_prob).sum(), q)
    torch.testing.assert_close(found[0], toy.exact())


def test_policy_gradient_of_ranked_lists() -> None:
    toy = Lists()
    rows = toy.q.repeat(ROWS, 1).requires_grad_()
    options: dict[str, Any] = {"rollouts": DRAWS, "temperature": 0.5, "generator": generator()}
    lists = sample_plackett_luce(rows, toy.c, 2, **options)
    agrees(estimates(toy.log_prob(lists, rows), toy.reward(lists), rows), toy.exact())


def test_policy_gradient_of_the_gaussian() -> None:
    """E |x - a|^2 = |m - a|^2 + D scale^2."""
    m, a = embeddings(1, 3), embeddings(1, 3, seed=1)
    policy = GaussianPolicy(0.5)
    rows = m.repeat(ROWS, 1).requires_grad_()
    x = policy.sample(rows, rollouts=DRAWS, generator=generator())
    rewards = -(x - a).square().sum(dim=-1)
    agrees(estimates(policy.log_prob(x, rows), rewards, rows), -2 * (m - a)[0])


def test_policy_gradient_of_von_mises_fisher() -> None:
    """E <x, a> = A <m, a>, m the direction of the embedding."""
    e, a = embeddings(1, 4).requires_grad_(), embeddings(1, 4, seed=1)
    policy = VonMisesFisherPolicy(6.0)
    rows = e.detach().repeat(ROWS, 1).requires_grad_()
    x = policy.sample(rows, rollouts=DRAWS, generator=generator())
    exact = torch.autograd.grad(policy.mean_cosine(4) * (normalize(e) * a).sum(), e)[0][0]
    agrees(estimates(policy.log_prob(x, rows), (x * a).sum(dim=-1), rows), exact)


# errors


M = torch.ones(3, 4)
GAUSSIAN, FISHER = GaussianPolicy(0.1), VonMisesFisherPolicy(10.0)
ANY: Any = None
ERRORS: dict[str, tuple[type[Exception], str, Callable[[], object]]] = {
    "scale": (ValueError, "scale must be positive", lambda: GaussianPolicy(0.0)),
    "scale type": (TypeError, "scale must be a number", lambda: GaussianPolicy(ANY)),
    "concentration": (ValueError, "must be positive", lambda: VonMisesFisherPolicy(math.inf)),
    "rollouts": (ValueError, "rollouts must be G, an integer of 1", lambda: GAUSSIAN.sample(M, 0)),
    "rollouts type": (ValueError, "rollouts must be G, an int", lambda: FISHER.sample(M, ANY)),
    "embeddings type": (TypeError, "must be a torch.Tensor", lambda: GAUSSIAN.sample(ANY, 2)),
    "embeddings dtype": (TypeError, "must be float16", lambda: GAUSSIAN.sample(M.long(), 2)),
    "embeddings shape": (ValueError, r"\[N, D\] with D >= 1", lambda: GAUSSIAN.sample(M[0], 2)),
    "one feature": (ValueError, "D = 2 or more features", lambda: FISHER.sample(M[:, :1], 2)),
    "zero": (ValueError, "to have a direction", lambda: FISHER.sample(torch.zeros(1, 4), 2)),
    "NaN": (ValueError, "to have a direction", lambda: FISHER.sample(M * torch.nan, 2)),
    "rollouts shape": (ValueError, r"= \[G, 3, 4\], got \[3, 4\]", lambda: FISHER.log_prob(M, M)),
    "rollouts dtype": (TypeError, "floating", lambda: GAUSSIAN.log_prob(M[None].long(), M)),
    "reference": (ValueError, r"\[3, 4\], got \[1, 4\]", lambda: FISHER.kl(M, M[:1])),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    error, text, call = ERRORS[name]
    with pytest.raises(error, match=text):
        call()
