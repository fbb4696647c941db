"""The GRPO objective: advantages within the group of a query, and the clipped loss with KL."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..validation import (
    INTEGER_DTYPES,
    accumulation_dtype,
    check_choice,
    check_count,
    check_floats,
    check_number,
    check_tensor,
)

Level = Literal["token", "sequence"]
Reduction = Literal["sequence_mean", "token_mean", "constant_length"]
_SHAPES = {2: "[G, N]", 3: "[G, N, T]"}


class GrpoStatistics(NamedTuple):
    """What `return_stats=True` adds: detached 0-d tensors, means over the tokens that count.

    A loss without T has one token for each rollout, and so has the ratio of a sequence.
    """

    clipped_low: Tensor  #: share with a ratio below `1 - clip` and a negative advantage
    clipped_high: Tensor  #: share with a ratio above `1 + clip_high` and a positive advantage
    kl: Tensor  #: the KL term before its weight: k3, or the given exact one; 0 without either
    ratio: Tensor  #: mean importance ratio, before any clip


@torch.no_grad()
def group_advantages(
    rewards: Tensor,
    *,
    normalize: Literal["std", "none"] = "std",
    baseline: Literal["mean", "leave_one_out"] = "mean",
    eps: float = 1e-4,
) -> Tensor:
    """Rewards relative to the other rollouts of the same query.

        A = rewards - rewards.mean(dim=0)                                  baseline="mean"
        A = rewards - (rewards.sum(dim=0) - rewards) / (G - 1)             baseline="leave_one_out"
        A = A / (rewards.std(dim=0) + eps)                                 normalize="std"

    The mean contains the rollout itself, so without "std" the policy gradient is (G - 1) / G times
    the true one; with the mean of the others it is unbiased. "std" weighs queries whose rewards
    hardly differ as much as others.

    Args:
        rewards: `[G, N]`, floating: G rollouts of each of N queries. A NaN makes its group NaN.
        normalize: `"std"` (default; TRL's `scale_rewards="group"`), the sample standard deviation,
            or `"none"` (Dr. GRPO).
        baseline: `"mean"` (default) or `"leave_one_out"` (RLOO), which needs G of 2 or more.
        eps: added to the standard deviation.

    Returns:
        `[G, N]`, float32 or float64, without gradient; exactly 0 in a group of equal rewards.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or value.

    Source:
        DeepSeekMath, arXiv 2402.03300, section 4.1; RLOO, arXiv 2402.14740; Dr. GRPO, arXiv
        2503.20783; eps as in TRL.

    Example:
        >>> rewards = torch.tensor([[1.0, 0.5], [0.0, 0.5], [2.0, 0.5]])
        >>> group_advantages(rewards, normalize="none").T.tolist()
        [[0.0, -1.0, 1.0], [0.0, 0.0, 0.0]]
    """
    r = _floats("rewards", rewards, dims=(2,))
    check_choice("normalize", normalize, ("std", "none"))
    check_choice("baseline", baseline, ("mean", "leave_one_out"))
    check_number("eps", eps)
    group = r.shape[0]
    if baseline == "leave_one_out" and group == 1:
        raise ValueError(
            "rewards must have G = 2 or more rollouts for the baseline 'leave_one_out', got 1; "
            "draw more rollouts for each query"
        )
    advantages = r - r.mean(dim=0)
    if baseline == "leave_one_out":
        advantages = advantages * (group / (group - 1))
    if normalize == "std" and group > 1:
        advantages = advantages / (r.std(dim=0) + eps)
    equal = r.amax(dim=0) == r.amin(dim=0)  # their mean may be a bit off
    return advantages.masked_fill(equal, 0.0)


def kl_k3(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """An estimate of KL(policy || reference) from samples of the policy, never negative.

        exp(d) - d - 1,  d = reference_log_probs - log_probs

    Its mean is exact where the samples come from the policy itself. Its gradient is then, on
    average, that of KL(reference || policy), which agrees near the reference alone; a policy with a
    `kl` of its own has the exact one.

    Args:
        log_probs: of the samples under the policy, any shape.
        reference_log_probs: under the reference, the same shape; no gradient flows into it.

    Returns:
        One value for each sample, float32 or float64.

    Raises:
        TypeError, ValueError: no floating tensors, or shapes that differ.

    Source:
        Schulman, Approximating KL Divergence, 2020, k3; DeepSeekMath, arXiv 2402.03300, eq. 4.

    Example:
        >>> kl_k3(torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -3.0]))
        tensor([0.0000, 0.3679])
    """
    p = _floats("log_probs", log_probs, dims=None)
    reference = _like("reference_log_probs", reference_log_probs, p)
    return _k3(reference - p)


def _k3(d: Tensor) -> Tensor:
    return torch.expm1(d) - d


def grpo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor | None,
    advantages: Tensor,
    *,
    mask: Tensor | None = None,
    clip: float = 0.2,
    clip_high: float | None = None,
    delta: float | None = None,
    level: Level = "token",
    reduction: Reduction = "sequence_mean",
    max_length: int | None = None,
    reference_log_probs: Tensor | None = None,
    kl: Tensor | None = None,
    kl_weight: float = 0.0,
    return_stats: bool = False,
) -> Any:
    """The clipped policy-gradient objective of GRPO, as a loss.

        ratio = exp(log_probs - old_log_probs)
        loss = -reduce(min(ratio A, clamp(ratio, 1 - clip, 1 + clip_high) A) - kl_weight KL)

    A rollout is one action, `[G, N]` (an embedding, a ranked list), or T tokens, `[G, N, T]` (a
    model's own reasoning). In the first step on new rollouts the ratio is 1, and the gradient is
    that of REINFORCE, `-A grad log p`.

    Args:
        log_probs: `[G, N]` or `[G, N, T]`, of the rollouts under the policy, differentiable.
        old_log_probs: the same shape, under the policy that drew them; None: this very policy, so
            ratios are 1.
        advantages: `[G, N]`, of `group_advantages`.
        mask: `[G, N, T]`, bool or 0 and 1: the tokens that count; others may hold anything. A
            rollout without tokens adds 0 and is counted. None (default): all.
        clip: the ratio is clipped below at 1 - clip.
        clip_high: and above at 1 + clip_high; None (default): clip. Higher than clip: DAPO's
            "clip higher".
        delta: upper bound of the ratio of negative advantages too, above 1 + clip_high; None
            (default): none, so one large ratio can make the loss infinite. Set it where
            log-probabilities are sums over many features (`GaussianPolicy`): their ratios soon
            overflow.
        level: `"token"` (default): a ratio for each token. `"sequence"`: the geometric mean of the
            rollout's ratios (GSPO). Without T the same.
        reduction: `"sequence_mean"` (default): mean over the tokens of a rollout, then over
            rollouts (GRPO). `"token_mean"`: over all tokens (DAPO). `"constant_length"`: sum over
            tokens / (G N max_length) (Dr. GRPO).
        max_length: of `"constant_length"`: the T that no rollout exceeds.
        reference_log_probs: the same shape as log_probs, under the reference policy: KL is
            `kl_k3`, for each token, reduced like the rest.
        kl: `[N]` or `[G, N]` instead: an exact KL, such as a policy's `kl`; its mean is added.
        kl_weight: of KL (beta); 0 (default): in the statistics alone.
        return_stats: also return `GrpoStatistics`.

    Returns:
        The loss, 0-d, float32 or float64; with `return_stats` a pair.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or value.

    Source:
        DeepSeekMath, arXiv 2402.03300, eq. 3; DAPO, arXiv 2503.14476; GSPO, arXiv 2507.18071; Dr.
        GRPO, arXiv 2503.20783; delta: INTELLECT-2, arXiv 2505.07291. TRL calls clip, clip_high and
        kl_weight `epsilon`, `epsilon_high` and `beta`, level `importance_sampling_level`, and the
        reductions `loss_type="grpo"`, `"bnpo"` (`"dapo"` where a step is one batch on one process)
        and `"dr_grpo"`.

    Example:
        A supervised loss is mixed in by a sum.

        >>> from grainrank.rl.policies import GaussianPolicy
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> _ = q.requires_grad_()
        >>> policy = GaussianPolicy(scale=0.1)
        >>> drawn = policy.sample(q, rollouts=6, generator=torch.Generator().manual_seed(1))
        >>> rewards = torch.nn.functional.cosine_similarity(drawn, c, dim=-1)
        >>> log_probs = policy.log_prob(drawn, q)
        >>> loss = grpo_loss(log_probs, None, group_advantages(rewards))
        >>> loss = loss + 0.1 * multi_level_ranking_loss(q, c, temperature=0.1)
        >>> loss.backward()
    """
    check_choice("level", level, ("token", "sequence"))
    check_choice("reduction", reduction, ("sequence_mean", "token_mean", "constant_length"))
    p = _floats("log_probs", log_probs, dims=(2, 3))
    keep = _mask(mask, p)  # [G, N, T], T = 1 for whole rollouts
    length = _length(max_length, reduction)
    low, high, bound = _bounds(clip, clip_high, delta)
    a = _floats("advantages", advantages, dims=(2,)).detach().to(p.dtype)
    if a.shape != p.shape[:2]:
        raise ValueError(
            f"advantages must have shape [G, N] = {list(p.shape[:2])}, got {list(a.shape)}; "
            f"pass one for each rollout"
        )
    a = a[..., None]
    old = p.detach() if old_log_probs is None else _like("old_log_probs", old_log_probs, p)
    log_ratio = _tokens(p, keep) - _tokens(old, keep)  # [G, N, T], 0 where masked
    sizes = keep.sum(dim=-1, keepdim=True)  # [G, N, 1]
    if level == "sequence":
        log_ratio = log_ratio.sum(dim=-1, keepdim=True) / sizes.clamp_min(1)  # [G, N, 1]

    # min(ratio A, clamp(ratio) A) by a clamp of the logarithm: a clipped ratio that overflows has
    # gradient 0, not NaN.
    least = torch.full_like(a, -math.inf).masked_fill(a < 0, low)
    most = torch.full_like(a, high).masked_fill(a < 0, bound)
    term = -a * log_ratio.clamp(least, most).exp()  # [G, N, T] or [G, N, 1]

    estimate, exact = _kl_terms(kl, reference_log_probs, kl_weight, p, keep)
    if estimate is not None and kl_weight != 0:
        term = term + kl_weight * estimate
    term = torch.where(keep, term, 0.0)  # [G, N, T]
    if reduction == "sequence_mean":
        loss = (term.sum(dim=-1, keepdim=True) / sizes.clamp_min(1)).mean()
    elif reduction == "token_mean":
        loss = term.sum() / sizes.sum().clamp_min(1)
    else:
        loss = term.sum() / (sizes.numel() * length)
    if exact is not None and kl_weight != 0:
        loss = loss + kl_weight * exact.mean()
    if not return_stats:
        return loss
    return loss, _statistics(log_ratio.detach(), a, (low, high), keep, estimate, exact)


def _statistics(
    log_ratio: Tensor,
    advantages: Tensor,
    clips: tuple[float, float],
    keep: Tensor,
    estimate: Tensor | None,
    exact: Tensor | None,
) -> GrpoStatistics:
    counted = keep if log_ratio.shape == keep.shape else keep.any(dim=-1, keepdim=True)

    def mean(x: Tensor, over: Tensor) -> Tensor:
        return torch.where(over, x.detach(), 0.0).sum() / over.sum().clamp_min(1)

    low, high = clips
    if exact is not None:
        kl = exact.detach().mean()
    else:
        kl = log_ratio.new_zeros(()) if estimate is None else mean(estimate, keep)
    return GrpoStatistics(
        clipped_low=mean(((log_ratio < low) & (advantages < 0)).to(log_ratio.dtype), counted),
        clipped_high=mean(((log_ratio > high) & (advantages > 0)).to(log_ratio.dtype), counted),
        kl=kl,
        ratio=mean(log_ratio.exp(), counted),
    )


def _kl_terms(
    kl: Tensor | None,
    reference_log_probs: Tensor | None,
    weight: float,
    log_probs: Tensor,
    keep: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """k3 of each token `[G, N, T]`, or the exact KL as it was given."""
    if weight != 0:
        check_number("kl_weight", weight)
    if kl is not None and reference_log_probs is not None:
        raise ValueError(
            "kl and reference_log_probs are two ways to the same term, got both; leave one out"
        )
    if kl is not None:
        exact = _floats("kl", kl, dims=(1, 2))
        if exact.shape not in (log_probs.shape[:2], log_probs.shape[1:2]):
            g, n = log_probs.shape[:2]
            raise ValueError(
                f"kl must have shape [N] = [{n}] or [G, N] = [{g}, {n}], got {list(exact.shape)}"
            )
        return None, exact
    if reference_log_probs is not None:
        reference = _like("reference_log_probs", reference_log_probs, log_probs)
        return _k3(_tokens(reference, keep) - _tokens(log_probs, keep)), None
    if weight != 0:
        raise ValueError(
            f"kl_weight needs kl or reference_log_probs, got {weight} and neither; "
            f"pass one of them, or kl_weight=0"
        )
    return None, None


def _tokens(x: Tensor, keep: Tensor) -> Tensor:
    """`[G, N, T]`, 0 where nothing counts."""
    return torch.where(keep, x if x.dim() == 3 else x[..., None], 0.0)


def _mask(mask: Tensor | None, log_probs: Tensor) -> Tensor:
    shape = log_probs.shape if log_probs.dim() == 3 else (*log_probs.shape, 1)
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=log_probs.device)
    m = check_tensor("mask", mask)
    if m.dtype != torch.bool and m.dtype not in INTEGER_DTYPES:
        raise TypeError(f"mask must be bool, or integers 0 and 1, got {m.dtype}; pass mask.bool()")
    if log_probs.dim() == 2:
        raise ValueError(
            "mask is for log_probs of tokens, [G, N, T], got log_probs of whole rollouts, [G, N]; "
            "leave it out, or give log_probs a last dimension"
        )
    if m.shape != log_probs.shape:
        raise ValueError(
            f"mask must have shape [G, N, T] = {list(shape)} like log_probs, got {list(m.shape)}"
        )
    return m.bool()


def _length(max_length: int | None, reduction: str) -> int:
    if (max_length is None) == (reduction == "constant_length"):
        state = "None" if max_length is None else repr(max_length)
        raise ValueError(
            f'max_length belongs to reduction="constant_length", got {state} for "{reduction}"; '
            f"pass both or neither"
        )
    if max_length is None:
        return 1
    return check_count("max_length", max_length)


def _bounds(
    clip: float, clip_high: float | None, delta: float | None
) -> tuple[float, float, float]:
    """Logarithms: the lower clip, the upper one, and the bound of negative advantages."""
    low = check_number("clip", clip)
    high = 1 + (low if clip_high is None else check_number("clip_high", clip_high))
    bound = math.inf if delta is None else check_number("delta", delta)
    if bound <= high:
        raise ValueError(
            f"delta must be above 1 + clip_high = {high:g}, got {bound:g}; "
            f"it bounds ratios that the clip does not"
        )
    return math.log1p(-low) if low < 1 else -math.inf, math.log(high), math.log(bound)


def _floats(name: str, value: object, dims: tuple[int, ...] | None) -> Tensor:
    """A floating tensor in the dtype of sums; `dims`: how many dimensions it may have."""
    tensor = check_floats(name, value)
    if dims is not None and (tensor.dim() not in dims or 0 in tensor.shape):
        expected = " or ".join({1: "[N]", **_SHAPES}[d] for d in dims)
        raise ValueError(
            f"{name} must have shape {expected} and no empty dimension, got {list(tensor.shape)}"
        )
    return tensor.to(accumulation_dtype(tensor.dtype))


def _like(name: str, value: object, log_probs: Tensor) -> Tensor:
    """Other log-probabilities of the same rollouts, without gradient."""
    tensor = _floats(name, value, dims=None)
    if tensor.shape != log_probs.shape:
        raise ValueError(
            f"{name} must have the shape of log_probs, {list(log_probs.shape)}, "
            f"got {list(tensor.shape)}"
        )
    return tensor.detach().to(log_probs.dtype)
