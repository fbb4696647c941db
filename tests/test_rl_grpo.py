"""The GRPO objective against loops and TRL; policy gradients: test_rl_policies.py."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from grainrank.rl.grpo import group_advantages, grpo_loss, kl_k3

G, N, T = 4, 3, 5
LEVELS = ("token", "sequence")
REDUCTIONS = ("sequence_mean", "token_mean", "constant_length")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Step:
    """Log-probabilities whose ratios lie on both sides of the clips, and a ragged mask."""

    def __init__(self, *shape: int, seed: int = 0) -> None:
        self.log_probs = (normal(*shape, seed=seed) * 0.5 - 1).requires_grad_()
        self.old = self.log_probs.detach() + normal(*shape, seed=seed + 1) * 0.3
        self.reference = self.log_probs.detach() + normal(*shape, seed=seed + 2) * 0.3
        self.advantages = normal(*shape[:2], seed=seed + 3)
        lengths = torch.arange(shape[0] * shape[1]).view(shape[:2]) % (T + 1)  # of one: 0
        self.mask = torch.arange(T) < lengths[..., None]


# advantages


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("normalize", ["std", "none"])
def test_advantages(normalize: Any, baseline: Any) -> None:
    rewards = normal(G, N)
    found = group_advantages(rewards, normalize=normalize, baseline=baseline)
    for n in range(N):
        group = rewards[:, n].tolist()
        for g, reward in enumerate(group):
            others = group[:g] + group[g + 1 :]
            expected = reward - statistics.fmean(group if baseline == "mean" else others)
            if normalize == "std":
                expected /= statistics.stdev(group) + 1e-4
            assert float(found[g, n]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("normalize", ["std", "none"])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e6 + 0.7, -0.3])
def test_equal_rewards_have_no_advantage(reward: float, normalize: Any, baseline: Any) -> None:
    rewards = torch.full((7, 2), reward)
    rewards[0, 1] = 5.0
    found = group_advantages(rewards, normalize=normalize, baseline=baseline)
    assert torch.equal(found[:, 0], torch.zeros(7))
    assert (found[:, 1] != 0).all()


def test_the_mean_as_baseline_shrinks_the_gradient() -> None:
    mean = group_advantages(normal(G, N), normalize="none")
    others = group_advantages(normal(G, N), normalize="none", baseline="leave_one_out")
    torch.testing.assert_close(mean, others * (G - 1) / G)


def test_one_rollout_has_no_advantage() -> None:
    assert torch.equal(group_advantages(torch.ones(1, 2)), torch.zeros(1, 2))


def test_advantages_dtype_and_gradient() -> None:
    rewards = torch.tensor([[1.0], [2.0], [4.0]], dtype=torch.bfloat16, requires_grad=True)
    found = group_advantages(rewards, normalize="none")
    assert (found.dtype, found.requires_grad) == (torch.float32, False)
    torch.testing.assert_close(found[:, 0], torch.tensor([-4 / 3, -1 / 3, 5 / 3]))


def test_a_nan_stays_in_its_group() -> None:
    rewards = torch.tensor([[1.0, 2.0], [torch.nan, 3.0]])
    found = group_advantages(rewards, normalize="none")
    assert found[:, 0].isnan().all()
    assert found[:, 1].tolist() == [-0.5, 0.5]


# KL


def test_k3() -> None:
    p, reference = normal(6), normal(6, seed=1)
    expected = [math.exp(r - x) - (r - x) - 1 for x, r in zip(p, reference, strict=True)]
    torch.testing.assert_close(kl_k3(p, reference), torch.tensor(expected, dtype=torch.float64))
    tiny = kl_k3(torch.tensor([-1.0]), torch.tensor([-1.0 + 2.0**-12]))
    assert float(tiny) == pytest.approx(2.0**-25, rel=2e-3), "the formula would give 0 in float32"


def test_k3_is_exact_on_average_and_its_gradient_that_of_the_other_kl() -> None:
    """Expectations over all of 5 outcomes."""
    logits, other = normal(5).requires_grad_(), normal(5, seed=1)
    p, r = logits.log_softmax(dim=0), other.log_softmax(dim=0)
    k3 = kl_k3(p, r)
    torch.testing.assert_close((p.exp() * k3).sum(), (p.exp() * (p - r)).sum())
    (found,) = torch.autograd.grad((p.detach().exp() * k3).sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad((r.exp() * (r - p)).sum(), logits)
    torch.testing.assert_close(found, expected)


# the loss against a loop


Clips = tuple[float, float, float | None]  # low, high, delta


def by_definition(
    s: Step, mask: Tensor, level: str, reduction: str, clips: Clips, kl_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    low, high, delta = clips
    sequences: list[Tensor] = []
    totals: list[Tensor] = []
    seen: dict[str, list[Any]] = {"low": [], "high": [], "kl": [], "ratio": []}
    for g, n in itertools.product(range(G), range(N)):
        tokens = mask[g, n].nonzero()[:, 0].tolist()
        a = s.advantages[g, n]
        p, old, reference = s.log_probs[g, n], s.old[g, n], s.reference[g, n]
        whole = torch.stack([p[t] - old[t] for t in tokens]).mean().exp() if tokens else None
        terms = []
        for t in tokens:
            ratio = (p[t] - old[t]).exp() if level == "token" else whole
            assert ratio is not None
            clipped = ratio.clamp(1 - low, 1 + high)
            bounded = ratio if delta is None else ratio.clamp(max=delta)
            kl = (reference[t] - p[t]).exp() - (reference[t] - p[t]) - 1
            terms.append(-torch.minimum(bounded * a, clipped * a) + kl_weight * kl)
            seen["kl"].append(kl)
            if level == "token" or t == tokens[0]:
                seen["ratio"].append(ratio)
                seen["low"].append(float(ratio < 1 - low and a < 0))
                seen["high"].append(float(ratio > 1 + high and a > 0))
        total = torch.stack(terms).sum() if terms else torch.zeros(())
        totals.append(total)
        sequences.append(total / max(1, len(tokens)))
    loss = {
        "sequence_mean": torch.stack(sequences).mean(),
        "token_mean": torch.stack(totals).sum() / int(mask.sum()),
        "constant_length": torch.stack(totals).sum() / (G * N * 7),
    }[reduction]
    return loss, {
        name: torch.stack([torch.as_tensor(x).double() for x in values]).mean().detach()
        for name, values in seen.items()
    }


CLIPS: dict[str, tuple[dict[str, float], Clips]] = {
    "clip 0.2": ({}, (0.2, 0.2, None)),
    "higher": ({"clip": 0.1, "clip_high": 0.3}, (0.1, 0.3, None)),
    "delta": ({"delta": 1.4}, (0.2, 0.2, 1.4)),
    "no lower clip": ({"clip": 1.5, "clip_high": 0.1}, (1.5, 0.1, None)),
}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "all"])
def test_loss_statistics_and_gradient(masked: bool, level: Any, reduction: Any, clip: str) -> None:
    s = Step(G, N, T)
    options, clips = CLIPS[clip]
    mask = s.mask if masked else torch.ones_like(s.mask)
    length = {"max_length": 7} if reduction == "constant_length" else {}
    found, stats = grpo_loss(
        s.log_probs, s.old, s.advantages, mask=mask if masked else None, level=level,
        reduction=reduction, reference_log_probs=s.reference, kl_weight=0.3, return_stats=True,
        **options, **length,
    )  # fmt: skip
    expected, seen = by_definition(s, mask, level, reduction, clips, 0.3)
    torch.testing.assert_close(found, expected)
    for name, value in zip(("low", "high", "kl", "ratio"), stats, strict=True):
        torch.testing.assert_close(value, seen[name])
    assert stats.clipped_high > 0
    assert (stats.clipped_low > 0) == (clip != "no lower clip")
    a, b = (torch.autograd.grad(x, s.log_probs)[0] for x in (found, expected))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("level", LEVELS)
def test_the_gradient_is_that_of_the_clipped_objective(level: Any) -> None:
    """Finite differences; a clipped token has none."""
    s = Step(G, N, T)
    assert torch.autograd.gradcheck(
        lambda p: grpo_loss(p, s.old, s.advantages, mask=s.mask, level=level), (s.log_probs,)
    )
    p = torch.tensor([[math.log(1.3)], [math.log(0.7)], [math.log(1.3)], [math.log(0.7)]])
    p.requires_grad_()
    advantages = torch.tensor([[1.0], [-1.0], [-1.0], [1.0]])
    (d,) = torch.autograd.grad(grpo_loss(p, torch.zeros(4, 1), advantages, level=level), p)
    torch.testing.assert_close(d[:, 0] * 4, torch.tensor([0.0, 0.0, 1.3, -0.7]))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_whole_rollouts_are_of_one_token(reduction: Any, level: Any) -> None:
    s = Step(G, N)
    length = {"max_length": 2} if reduction == "constant_length" else {}
    options: dict[str, Any] = {"reduction": reduction, "level": level, "kl_weight": 0.1, **length}
    tensors = s.log_probs, s.old, s.reference
    one, other = (
        grpo_loss(p, old, s.advantages, reference_log_probs=r, return_stats=True, **options)
        for p, old, r in (tensors, [x[..., None] for x in tensors])
    )
    assert torch.equal(torch.stack([one[0], *one[1]]), torch.stack([other[0], *other[1]]))


def test_without_old_log_probs_it_is_reinforce() -> None:
    s = Step(G, N)
    loss, stats = grpo_loss(s.log_probs, None, s.advantages, return_stats=True)
    torch.testing.assert_close(loss, -s.advantages.mean())
    assert [float(x) for x in stats] == [0, 0, 0, 1]
    (d,) = torch.autograd.grad(loss, s.log_probs)
    torch.testing.assert_close(d, -s.advantages / (G * N))


@pytest.mark.parametrize("shape", ["[N]", "[G, N]"])
def test_an_exact_kl_is_added(shape: str) -> None:
    s = Step(G, N, T)
    kl = normal(N).square() if shape == "[N]" else normal(G, N).square()
    kl.requires_grad_()
    plain = grpo_loss(s.log_probs, s.old, s.advantages, reduction="token_mean", mask=s.mask)
    loss, stats = grpo_loss(
        s.log_probs, s.old, s.advantages, reduction="token_mean", mask=s.mask, kl=kl,
        kl_weight=0.4, return_stats=True,
    )  # fmt: skip
    torch.testing.assert_close(loss, plain + 0.4 * kl.mean())
    torch.testing.assert_close(stats.kl, kl.mean().detach())
    (d,) = torch.autograd.grad(loss, kl)
    torch.testing.assert_close(d, torch.full_like(kl, 0.4 / kl.numel()))


@pytest.mark.parametrize("given", ["kl", "reference"])
def test_a_kl_without_weight_is_a_statistic(given: str) -> None:
    s = Step(G, N)
    kl = ("kl", torch.full((N,), 2.0)) if given == "kl" else ("reference_log_probs", s.reference)
    loss, stats = grpo_loss(s.old, None, s.advantages, return_stats=True, **dict([kl]))
    assert torch.equal(loss, grpo_loss(s.old, None, s.advantages))
    expected = 2.0 if given == "kl" else float(kl_k3(s.old, s.reference).mean())
    assert float(stats.kl) == pytest.approx(expected)


def test_equal_rewards_have_no_gradient() -> None:
    s = Step(G, N, T)
    advantages = group_advantages(torch.full((G, N), 0.1))
    (d,) = torch.autograd.grad(grpo_loss(s.log_probs, s.old, advantages), s.log_probs)
    assert torch.equal(d, torch.zeros_like(d))


@pytest.mark.parametrize("level", LEVELS)
def test_masked_tokens_may_hold_anything(level: Any) -> None:
    s = Step(G, N, T)
    tensors = s.log_probs.detach(), s.old, s.reference
    results = []
    for value in (0.0, torch.nan, torch.inf):
        p, old, reference = (x.masked_fill(~s.mask, value) for x in tensors)
        p.requires_grad_()
        loss = grpo_loss(
            p, old, s.advantages, mask=s.mask.long(), level=level, kl_weight=0.1,
            reference_log_probs=reference,
        )  # fmt: skip
        results.append((loss, torch.autograd.grad(loss, p)[0]))
    for loss, d in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(d, results[0][1])
    assert not results[0][1][~s.mask].any()


@pytest.mark.parametrize("advantage", [2.0, 0.0, -2.0], ids=["good", "neither", "bad"])
def test_ratios_that_overflow(advantage: float) -> None:
    """Clipped, or bounded by delta, they have no gradient, where the formula has NaN."""
    p = torch.tensor([[500.0], [0.0]], requires_grad=True)
    advantages = torch.tensor([[advantage], [0.0]])
    loss = grpo_loss(p, torch.zeros(2, 1), advantages, delta=3.0)
    bound = 1.2 if advantage > 0 else 3.0
    assert float(loss.detach()) == pytest.approx(-bound * advantage / 2)
    (d,) = torch.autograd.grad(loss, p)
    assert torch.equal(d, torch.zeros(2, 1))


def test_half_precision() -> None:
    s = Step(G, N)
    p = s.log_probs.detach().bfloat16().requires_grad_()
    loss, stats = grpo_loss(p, s.old.bfloat16(), s.advantages.half(), return_stats=True)
    assert {loss.dtype, *(x.dtype for x in stats)} == {torch.float32}
    assert torch.autograd.grad(loss, p)[0].dtype == torch.bfloat16


# TRL


def trl() -> Any:
    pytest.importorskip("trl.losses", reason="needs pip install --no-deps trl==1.13.0")
    from trl.losses import grpo_loss as module

    return module


TRL_TYPES = dict(zip(("grpo", "bnpo", "dr_grpo"), REDUCTIONS, strict=True)) | {"dapo": "token_mean"}


@pytest.mark.parametrize("clip", ["clip 0.2", "higher", "delta"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", TRL_TYPES)
def test_trl(loss_type: str, level: Any, clip: str) -> None:
    s = Step(G, N, T)
    options, (low, high, delta) = CLIPS[clip]
    rows = [x.flatten(0, 1) for x in (s.log_probs, s.mask.double(), s.advantages)]
    expected, metrics = trl().FusedLinearGRPOFunction.ppo_loss_fn(
        *rows, full_attention_mask=rows[1], ref_per_token_logps=s.reference.flatten(0, 1),
        old_per_token_logps=s.old.flatten(0, 1), epsilon_low=low, epsilon_high=high, beta=0.04,
        loss_type=loss_type, max_completion_length=7, importance_sampling_level=level, delta=delta,
    )  # fmt: skip
    reduction: Any = TRL_TYPES[loss_type]
    length = {"max_length": 7} if reduction == "constant_length" else {}
    found, stats = grpo_loss(
        s.log_probs, s.old, s.advantages, mask=s.mask, level=level, reduction=reduction,
        reference_log_probs=s.reference, kl_weight=0.04, return_stats=True, **options, **length,
    )  # fmt: skip
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(stats.kl, metrics[0].detach())
    if level == "token":
        torch.testing.assert_close(stats.clipped_low + stats.clipped_high, metrics[1])
    a, b = (torch.autograd.grad(x, s.log_probs)[0] for x in (found, expected))
    torch.testing.assert_close(a, b)


def test_trl_k3() -> None:
    p, reference = normal(6), normal(6, seed=1)
    torch.testing.assert_close(kl_k3(p, reference), trl().k3_loss_fn(reference, p))


# errors

S = Step(G, N, T)
WHOLE = Step(G, N)


def loss(**options: Any) -> Callable[[], object]:
    given = {"log_probs": S.log_probs, "old_log_probs": S.old, "advantages": S.advantages}
    return lambda: grpo_loss(**{**given, **options})


def advantages(rewards: Any = WHOLE.advantages, **options: Any) -> Callable[[], object]:
    return lambda: group_advantages(rewards, **options)


ONES = torch.ones(2, 2)
CONSTANT = {"reduction": "constant_length"}
ERRORS: dict[str, tuple[type[Exception], str, Callable[[], object]]] = {
    "rewards type": (TypeError, "rewards must be a torch.Tensor", advantages([1.0])),
    "rewards dtype": (TypeError, "rewards must be float16", advantages(ONES.long())),
    "rewards shape": (ValueError, r"rewards must have shape \[G, N\]", advantages(ONES[0])),
    "rewards empty": (ValueError, r"no empty .*, got \[2, 0\]", advantages(ONES[:, :0])),
    "normalize": (ValueError, "normalize must be one of 'std'", advantages(normalize="batch")),
    "baseline": (ValueError, "baseline must be one of 'mean'", advantages(baseline="rloo")),
    "eps": (ValueError, "eps must be positive", advantages(eps=0.0)),
    "one": (ValueError, "G = 2 or more", advantages(ONES[:1], baseline="leave_one_out")),
    "k3": (ValueError, r"of log_probs, \[4, 3\], got \[2\]", lambda: kl_k3(WHOLE.old, ONES[0])),
    "log_probs": (ValueError, r"\[G, N\] or \[G, N, T\] and", loss(log_probs=S.old[0, 0])),
    "log_probs dtype": (TypeError, "log_probs must be float16", loss(log_probs=S.mask)),
    "old": (ValueError, "old_log_probs must have the shape", loss(old_log_probs=WHOLE.old)),
    "advantages": (ValueError, r"= \[4, 3\], got \[3, 4\]", loss(advantages=S.advantages.T)),
    "advantages of tokens": (ValueError, r"must have shape \[G, N\] and", loss(advantages=S.old)),
    "mask dtype": (TypeError, "mask must be bool, or integers", loss(mask=S.mask.float())),
    "mask shape": (ValueError, r"= \[4, 3, 5\] like log_probs, got \[3, 5\]", loss(mask=S.mask[0])),
    "mask of rollouts": (
        ValueError, "of tokens", loss(log_probs=WHOLE.old, old_log_probs=None, mask=S.mask)
    ),
    "clip": (ValueError, "clip must be positive", loss(clip=0.0)),
    "clip_high": (ValueError, "clip_high must be positive", loss(clip_high=-0.1)),
    "delta": (ValueError, r"\+ clip_high = 1.3, got 1.2", loss(clip_high=0.3, delta=1.2)),
    "level": (ValueError, "level must be one of 'token', 'sequence'", loss(level="query")),
    "reduction": (ValueError, "must be one of 'sequence_mean'", loss(reduction="mean")),
    "no max_length": (ValueError, 'to reduction="constant_length", got None', loss(**CONSTANT)),
    "max_length": (ValueError, 'got 7 for "sequence_mean"', loss(max_length=7)),
    "max_length 0": (ValueError, "integer of 1 or more, got 0", loss(max_length=0, **CONSTANT)),
    "reference": (ValueError, "reference_log_probs must", loss(reference_log_probs=WHOLE.old)),
    "kl": (ValueError, r"\[N\] = \[3\] or \[G, N\] = \[4, 3\], got \[2\]", loss(kl=ONES[0])),
    "both": (ValueError, "two ways", loss(kl=ONES[0], reference_log_probs=S.old)),
    "neither": (ValueError, "kl_weight needs kl or reference_log_", loss(kl_weight=0.1)),
    "kl_weight": (ValueError, "kl_weight must be positive", loss(kl_weight=-0.1, kl=ONES[0])),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    error, text, call = ERRORS[name]
    with pytest.raises(error, match=text):
        call()
