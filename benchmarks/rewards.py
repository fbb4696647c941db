"""Rewards of rollouts beside the bare products of the same pairs: time and memory.

    python benchmarks/rewards.py

writes results/rewards-avx2.json. G rollouts of queries of a hierarchy, float32, with few and with
many positives. The eager way stores the matrix of a rollout, and sorts its rows; it is given one
rollout. Times are of one process, in turn; memory is of processes of their own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peak_memory import measured_apart
from timing import summary
from torch import Tensor
from torch.nn.functional import normalize

from grainrank import GrainKeys
from grainrank.bench.memory import peak_of
from grainrank.bench.timing import interleave
from grainrank.machine import machine_header
from grainrank.rl import margin_reward, ranking_reward

RESULT = Path(__file__).parent / "results" / "rewards-avx2.json"
# Candidates of a grain, coarse to fine; the finest is the item. The first: positives of a query.
GROUPS = {"64 positives": (64, 8, 1), "512 positives": (512, 64, 8, 1)}
SPREAD = 0.5  # of the grains' centres
ROWS = 512  # of a block of the bare products
TARGET = 0.05
TARGET_MIB, TARGET_RATIO = 300, 1.5  # of a reward


def inputs_of(group: str, g: int, n: int, m: int, d: int) -> tuple[Tensor, Tensor, GrainKeys]:
    """Unit rows; a query is a candidate with noise of its own, and of each rollout."""
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(m)
    c = torch.zeros(m, d)
    for size in GROUPS[group]:
        centres = torch.randn(-(-m // size), d, generator=generator)
        c += SPREAD * centres[index // size]
    c = normalize(c, dim=1)
    of_query = torch.randint(m, (n,), generator=generator)
    q = c[of_query] + torch.randn(n, d, generator=generator) * d**-0.5
    rollouts = normalize(q + torch.randn(g, n, d, generator=generator) * d**-0.5, dim=2)
    keys = torch.stack([index // size for size in GROUPS[group]], dim=1)
    return rollouts, c, GrainKeys(keys[of_query], keys)


def bare_products(r: Tensor, c: Tensor, _: GrainKeys) -> None:
    out = torch.empty(ROWS, len(c))
    for rollout in r:
        for rows in rollout.split(ROWS):
            torch.mm(rows, c.t(), out=out[: len(rows)])


def concordance(r: Tensor, c: Tensor, levels: GrainKeys) -> Tensor:
    return ranking_reward(r, c, levels)


def ndcg(r: Tensor, c: Tensor, levels: GrainKeys) -> Tensor:
    return ranking_reward(r, c, levels, rule="ndcg", gain="exp2")


def margin(r: Tensor, c: Tensor, levels: GrainKeys) -> Tensor:
    return margin_reward(r, c, levels, target=TARGET)


def eager_concordance(r: Tensor, c: Tensor, levels: GrainKeys) -> Tensor:
    """Of similarities without ties."""
    n, size = r.shape[1], levels.max_level + 1
    y = levels.block(0, n, len(c))
    count = torch.stack([(y == k).sum(dim=1) for k in range(size)], dim=1)
    rewards = []
    for rollout in r:
        sorted_levels = y.gather(1, (rollout @ c.t()).argsort(dim=1))  # ascending
        shares, pairs = torch.zeros(n), torch.zeros(n)
        for b in range(size - 1):
            below = (sorted_levels == b).cumsum(dim=1)
            for a in range(b + 1, size):
                right = (below * (sorted_levels == a)).sum(dim=1)
                both = count[:, a] * count[:, b]
                shares += right / both.clamp_min(1)
                pairs += both > 0
        rewards.append(shares / pairs.clamp_min(1))
    return torch.stack(rewards)


Provider = Callable[[Tensor, Tensor, GrainKeys], Any]
PROVIDERS: dict[str, Provider] = {
    "bare products": bare_products,
    "concordance": concordance,
    "ndcg": ndcg,
    "margin": margin,
    "eager concordance": eager_concordance,
}
ONE_ROLLOUT = ("eager concordance",)  # in one round: many times as long as the others


Inputs = tuple[Tensor, Tensor, GrainKeys]


def of_provider(name: str, inputs: Inputs) -> Inputs:
    r, c, levels = inputs
    return (r[:1] if name in ONE_ROLLOUT else r), c, levels


def memory_of(name: str, group: str, sizes: tuple[int, int, int, int]) -> int:
    PROVIDERS[name](*inputs_of(group, 2, 64, 1024, sizes[3]))
    inputs = of_provider(name, inputs_of(group, *sizes))
    return peak_of(lambda: PROVIDERS[name](*inputs))


def check(r: Tensor, c: Tensor, levels: GrainKeys) -> None:
    """On some rows: the eager way and ours agree, but for pairs that rounding exchanges."""
    some = GrainKeys(levels.tensors[0][:32], levels.tensors[1])
    found, expected = (f(r[:2, :32], c, some) for f in (concordance, eager_concordance))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def measured(group: str, sizes: tuple[int, int, int, int], rounds: int) -> dict[str, Any]:
    """Of each provider times, their ratio to the bare products, and the peak of memory."""
    inputs = inputs_of(group, *sizes)
    check(*inputs)
    one = of_provider(ONE_ROLLOUT[0], inputs)

    def providers(names: list[str], given: Inputs) -> dict[str, Callable[[], Any]]:
        return {name: lambda run=PROVIDERS[name]: run(*given) for name in names}

    fast = [name for name in PROVIDERS if name not in ONE_ROLLOUT]
    seconds = interleave(providers(fast, inputs), rounds)
    slow = interleave(providers(["bare products", *ONE_ROLLOUT], one), 1)
    named = zip(("rollouts", "queries", "candidates", "features"), sizes, strict=True)
    flags = [f"--group={group}", *(f"--{name}={size}" for name, size in named)]
    found = {}
    for name in PROVIDERS:
        times = slow if name in ONE_ROLLOUT else seconds
        found[name] = {
            "rollouts": 1 if name in ONE_ROLLOUT else sizes[0],
            **summary(times, name, "bare products"),
            "peak_bytes": measured_apart(__file__, flags, name),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rollouts", type=int, default=8, metavar="G")
    parser.add_argument("--queries", type=int, default=4096, metavar="N")
    parser.add_argument("--candidates", type=int, default=8192, metavar="M")
    parser.add_argument("--features", type=int, default=256, metavar="D")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--group", choices=list(GROUPS), help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", choices=list(PROVIDERS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    g, n, m, d = sizes = given.rollouts, given.queries, given.candidates, given.features
    if given.memory_of is not None:
        print(memory_of(given.memory_of, given.group, sizes))
        return
    result: dict[str, Any] = {
        "what": "time and peak memory over the inputs, beside the bare products of all pairs",
        "machine": machine_header(),
        "G": g, "N": n, "M": m, "D": d,
        "groups": GROUPS,
        "input_bytes": 4 * d * (g * n + m),
        "flops": 2 * g * n * m * d,
        "targets": {"of_bare_products": TARGET_RATIO, "peak_bytes": TARGET_MIB * 2**20},
        "providers": {group: measured(group, sizes, given.rounds) for group in GROUPS},
    }  # fmt: skip
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
