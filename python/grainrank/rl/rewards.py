"""Rewards of rollouts, by rules: how well the order of the candidates follows their levels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..backends import Backend
from ..levels import LevelSource
from ..losses import level_statistics
from ..metrics import ndcg_at
from ..ranks import PositiveRanks, positive_ranks
from ..statistics import LevelStatistics
from ..uncompiled import uncompiled
from ..validation import accumulation_dtype, check_choice, check_number, check_numbers, check_tensor
from .rollouts import check_rollouts, row_chunks, rows_of_levels


@uncompiled
@torch.no_grad()
def ranking_reward(
    rollouts: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    rule: Literal["concordance", "ndcg"] = "concordance",
    average: Literal["macro", "micro"] | None = None,
    k: int | None = None,
    gain: Literal["linear", "exp2"] | Sequence[float] | Tensor | None = None,
    normalize: bool = True,
    backend: Backend = "auto",
    workspace_mb: float | None = None,
) -> Tensor:
    """How well each rollout ranks the candidates of each query by their levels, from 0 to 1.

        concordance: share[a, b] = |{(p, j): y_p = a, y_j = b, s_p > s_j}| / (count[a] count[b])
                     reward = mean of share[a, b] over the levels a > b >= 0 that the row has
        ndcg:        reward = ndcg_at(ranks, k, gain=gain)

    Equal similarities are in the wrong order, for both rules: each candidate stands behind all that
    equal it. So a rollout that gives all candidates one similarity gets the least that any order
    gets, in concordance 0, and nothing is won by collapse; in the order by levels, candidates that
    tie within a level still cost nDCG. Pairs of level -1 take no part.

    1 is the order by levels, 0 in concordance its reverse; a random order has concordance 1/2.

    Args:
        rollouts: G versions of the query embeddings, `[G, N, D]`, float16, bfloat16, float32 or
            float64. No gradient flows.
        candidates: embeddings `[M, D]` of the same dtype and device, the same for all rollouts.
        levels: a level source of N queries and M candidates; None: candidate i is the positive of
            query i. A `false_negative_margin` needs a `reference`: negatives that are left out
            because they score high would be a way to win.
        rule: `"concordance"` (default) looks at the whole order, `"ndcg"` more at its head.
        average: of concordance. `"macro"` (None): each pair of levels weighs the same; `"micro"`:
            each pair of candidates does, and the levels with many candidates decide.
        k: of nDCG, how many candidates are looked at; None (default): all.
        gain: of nDCG, which has to name it: `"linear"`, `"exp2"` or a number of each level
            `[L + 1]`, as for `metrics.ndcg_at`.
        normalize: cosine similarity (default); False: dot product.
        backend: `"auto"` (default), `"reference"`, `"cpu"`, `"cuda"` or `"triton"`. On `"cpu"`
            equal candidates always tie; elsewhere the last bit of a similarity may depend on where
            the candidate stands.
        workspace_mb: bound of the row block's memory in MiB; None (default): as for
            `positive_ranks`. The ranks take about 64 MiB besides, or what a single row needs:
            rollouts are ranked one after the other, some rows at a time.

    Returns:
        `[G, N]`, float32 (float64 for float64 inputs); 0 for a query whose candidates are all of
        one level, whatever the rollout.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value; an
            option of the other rule; NaN or infinity in the embeddings.

    Source:
        Verifiable ranking rewards: after ELVA, arXiv 2606.20280. A share is the area under the ROC
        curve of two levels; their mean: Hand and Till, Machine Learning 2001, over ordered pairs.

    Example:
        >>> candidates = torch.tensor([[1.0, 0.0], [0.9, 0.3], [0.0, 1.0]])
        >>> levels = DenseLevels(torch.tensor([[2, 1, 0]]))
        >>> rollouts = torch.tensor([[[1.0, 0.0]], [[0.7, 0.3]], [[0.0, 1.0]], [[0.0, 0.0]]])
        >>> reward = ranking_reward(rollouts, candidates, levels)
        >>> [round(x, 3) for x in reward[:, 0].tolist()]
        [1.0, 0.667, 0.0, 0.0]
    """
    score = _score(rule, average, k, gain)
    rollouts, candidates, source = check_rollouts(rollouts, candidates, levels)
    size, n, m, device = *rollouts.shape[:2], len(candidates), rollouts.device
    rewards = torch.empty(size, n, dtype=accumulation_dtype(rollouts.dtype), device=device)
    options: dict[str, Any] = {"backend": backend, "workspace_mb": workspace_mb}
    for start, stop in row_chunks(source, n, m, device, **options):
        some = rows_of_levels(source, start, stop, m, device)
        for rollout, reward in zip(rollouts, rewards, strict=True):
            reward[start:stop] = score(
                positive_ranks(
                    rollout[start:stop],
                    candidates,
                    some,
                    ties="pessimistic",
                    normalize=normalize,
                    **options,
                )
            )
    return rewards


@uncompiled
@torch.no_grad()
def margin_reward(
    rollouts: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    target: float,
    of: Literal["extremes", "means"] = "extremes",
    normalize: bool = True,
    backend: Backend = "auto",
    workspace_mb: float | None = None,
) -> Tensor:
    """How far apart each rollout keeps neighbouring levels, from -1 to 1.

        extremes: gap[a, b] = lowest[a] - highest[b]
        means:    gap[a, b] = mean[a] - mean[b]
        spread = highest similarity of the row - lowest similarity of the row
        reward = mean over neighbours a > b of clip(gap[a, b] / spread / target, -1, 1)

    Neighbours stand next to each other among the levels 0..L that the row has. Gaps are shares of
    the row's spread: the reward does not change where all similarities of a row rise together or
    are multiplied by a positive number, so that it is not won by inflating them.

    A row whose spread is 0 gets -1, as the worst order does: a gap of 0 would be better than an
    honest attempt that fails. What rounding can make, `2 sqrt(D) eps |q| max |c|`, counts as 0.

    Args:
        rollouts: G versions of the query embeddings, `[G, N, D]`, float16, bfloat16, float32 or
            float64. No gradient flows.
        candidates: embeddings `[M, D]` of the same dtype and device, the same for all rollouts.
        levels: as for `ranking_reward`.
        target: gap that earns the full reward, a share of the spread in `0 < target <= 1`. A row
            of n levels can have n - 1 such gaps only up to 1 / (n - 1).
        of: `"extremes"` (default): the lowest candidate of the one level and the highest of the
            other; positive only where no pair of them is in the wrong order. `"means"`: the means
            of the levels, which single candidates move little.
        normalize: cosine similarity (default); False: dot product.
        backend: `"auto"` (default), `"reference"`, `"cpu"`, `"cuda"` or `"triton"`.
        workspace_mb: bound of the row block's memory in MiB; None (default): as for
            `level_statistics`.

    Returns:
        `[G, N]`, float32 (float64 for float64 inputs); 0 for a query whose candidates are all of
        one level, whatever the rollout.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value; NaN or
            infinity in the embeddings.

    Source:
        Verifiable margin rewards: after ELVA, arXiv 2606.20280.

    Example:
        >>> candidates = torch.tensor([[1.0, 0.0], [0.9, 0.3], [0.0, 1.0]])
        >>> levels = DenseLevels(torch.tensor([[2, 1, 0]]))
        >>> rollouts = torch.tensor([[[1.0, -0.4]], [[0.5, 1.0]], [[0.0, 0.0]]])
        >>> reward = margin_reward(rollouts, candidates, levels, target=0.1)
        >>> reward[:, 0].tolist()
        [1.0, -1.0, -1.0]
    """
    check_choice("of", of, ("extremes", "means"))
    if check_number("target", target) > 1:
        raise ValueError(
            f"target must lie in 0 < target <= 1, a share of the row's spread, got {target}"
        )
    rollouts, candidates, source = check_rollouts(rollouts, candidates, levels)
    dtype = accumulation_dtype(rollouts.dtype)
    rounding = 2 * rollouts.shape[2] ** 0.5 * torch.finfo(dtype).eps
    longest = 1.0 if normalize else torch.linalg.vector_norm(candidates, dim=1, dtype=dtype).max()
    rewards = []
    for rollout in rollouts:
        tables = level_statistics(
            rollout,
            candidates,
            source,
            temperature=1.0,
            normalize=normalize,
            backend=backend,
            workspace_mb=workspace_mb,
        )
        lengths = 1.0 if normalize else torch.linalg.vector_norm(rollout, dim=1, dtype=dtype)
        rewards.append(_margins(tables, target, of, rounding * longest * lengths))
    return torch.stack(rewards)


@uncompiled
@torch.no_grad()
def weighted_reward(*rewards: Tensor, weights: Sequence[float] | Tensor | None = None) -> Tensor:
    """The mean of several rewards by their weights.

        reward = sum over i of weights[i] rewards[i] / sum of weights

    So it stays between the least and the greatest of its parts. TRL's `reward_weights` are these
    weights without the division, which advantages in units of the group's deviation do not see.

    Args:
        rewards: tensors of one shape, `[G, N]`, floating.
        weights: a number for each of them, not negative, not all 0; None (default): 1.

    Returns:
        Same shape, of the widest dtype among the rewards.

    Raises:
        TypeError, ValueError: no reward, rewards of other types, dtypes, devices or shapes, or
            weights of another number, type or value.

    Example:
        >>> ranking, margin = torch.tensor([[1.0, 0.5]]), torch.tensor([[1.0, -1.0]])
        >>> weighted_reward(ranking, margin, weights=[2, 1]).tolist()
        [[1.0, 0.0]]
    """
    if len(rewards) == 0:
        raise ValueError("rewards must be one tensor or more, got none")
    for i, reward in enumerate(rewards):
        name, first = f"rewards[{i}]", rewards[0]
        if not check_tensor(name, reward).dtype.is_floating_point:
            raise TypeError(f"{name} must be floating, got {reward.dtype}; call .float()")
        if (reward.shape, reward.device) != (first.shape, first.device):
            raise ValueError(
                f"{name} must have the shape and device of the first one, {tuple(first.shape)} on "
                f"{first.device}, got {tuple(reward.shape)} on {reward.device}; "
                f"give all the same rollouts"
            )
    given = weights.tolist() if isinstance(weights, Tensor) else weights
    numbers = check_numbers("weights", [1.0] * len(rewards) if given is None else given)
    if len(numbers) != len(rewards):
        raise ValueError(
            f"weights must hold {len(rewards)} numbers, one for each reward, got {len(numbers)}"
        )
    if not numbers.sum() > 0:
        raise ValueError(f"weights must not all be 0, got {numbers.tolist()}")
    stack = torch.stack([reward.double() for reward in rewards])
    mean = torch.tensordot((numbers / numbers.sum()).to(stack), stack, dims=1)
    dtype = functools.reduce(torch.promote_types, (reward.dtype for reward in rewards))
    return torch.clamp(mean, stack.amin(dim=0), stack.amax(dim=0)).to(dtype)


def _score(
    rule: str, average: str | None, k: int | None, gain: Any
) -> Callable[[PositiveRanks], Tensor]:
    """The rule as a function of the ranks, `[R]`."""
    check_choice("rule", rule, ("concordance", "ndcg"))
    if rule == "concordance":
        if k is not None or gain is not None:
            raise ValueError(
                f'k and gain belong to rule="ndcg", got rule="concordance" with k={k!r} and '
                f"gain={gain!r}; leave them out"
            )
        check_choice("average", average or "macro", ("macro", "micro"))
        return lambda ranks: _concordance(ranks, macro=average != "micro")
    if average is not None:
        raise ValueError(
            f'average belongs to rule="concordance", got rule="ndcg" with average={average!r}; '
            f"leave it out"
        )
    if gain is None:
        raise TypeError(
            'gain must be named for rule="ndcg", got None; pass "linear" or "exp2": both are '
            "called nDCG"
        )
    return lambda ranks: _ndcg(ranks, k, gain)


def _concordance(ranks: PositiveRanks, macro: bool) -> Tensor:
    """Float64 `[R]`, of ranks with `ties="pessimistic"`."""
    rows, size = ranks.count.shape
    group = ranks.row * size + ranks.level
    wrong = torch.stack(
        [
            group.new_zeros(rows * size).index_add_(0, group, ranks.above[:, b]).view(rows, size)
            for b in range(size - 1)
        ],
        dim=2,
    )  # [R, L + 1, L]: candidates of level b above those of level a
    level = torch.arange(size, device=group.device)
    lower = level[:-1] < level[:, None]  # b < a
    pairs = ranks.count[:, :, None] * ranks.count[:, None, :-1] * lower
    right = pairs - wrong * lower
    if not macro:
        return right.sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp_min(1).double()
    share = right / pairs.clamp_min(1).double()
    return share.sum(dim=(1, 2)) / (pairs > 0).sum(dim=(1, 2)).clamp_min(1)


def _ndcg(ranks: PositiveRanks, k: int | None, gain: Any) -> Tensor:
    """Float64 `[R]`."""
    several = (ranks.count > 0).sum(dim=1) > 1
    return torch.where(several, ndcg_at(ranks, k, gain=gain).clamp_max(1), 0.0)


def _margins(t: LevelStatistics, target: float, of: str, rounding: float | Tensor) -> Tensor:
    """`[N]`; a spread up to `rounding` is none."""
    has = t.count > 0  # [N, L + 1]
    upper, lower = t.lowest, t.highest
    if of == "means":
        upper = lower = t.total / t.count.clamp_min(1)
    level = torch.arange(has.shape[1], device=has.device)
    below = torch.where(has, level, -1).cummax(dim=1).values[:, :-1]  # [N, L], the neighbour
    neighbours = has[:, 1:] & (below >= 0)
    gap = upper[:, 1:] - lower.gather(1, below.clamp_min(0))
    spread = t.highest.amax(dim=1) - t.lowest.amin(dim=1)
    flat = spread <= rounding
    share = gap / torch.where(flat, 1.0, spread)[:, None] / target
    number = neighbours.sum(dim=1)
    reward = torch.where(neighbours, share.clamp(-1, 1), 0.0).sum(dim=1) / number.clamp_min(1)
    return torch.where(number > 0, torch.where(flat, -1.0, reward), 0.0)
