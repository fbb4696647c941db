"""Rewards of rollouts beside the bare products of the same pairs: time and memory.

    python benchmarks/rewards.py

writes results/rewards-avx2.json. G rollouts of queries of a hierarchy of three grains, float32. The
eager way stores the matrix of a rollout, and sorts its rows; it is given one rollout. Times are of
one process, in turn; memory is of processes of their own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import interleave, ratio
from torch import Tensor
from torch.nn.functional import normalize

from grainrank import GrainKeys
from grainrank.machine import machine_header
from grainrank.rl import margin_reward, ranking_reward

RESULT = Path(__file__).parent / "results" / "rewards-avx2.json"
GROUP = (512, 64, 8, 1)  # candidates of a grain, coarse to fine; the finest is the item
SPREAD = (0.5, 0.5, 0.5, 0.5)  # of the grains' centres
ROWS = 512  # of a block of the bare products
TARGET = 0.05
TARGET_MIB, TARGET_RATIO = 300, 1.5  # of a reward


def inputs_of(g: int, n: int, m: int, d: int) -> tuple[Tensor, Tensor, GrainKeys]:
    """Unit rows; a query is a candidate with noise of its own, and of each rollout."""
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(m)
    c = torch.zeros(m, d)
    for size, spread in zip(GROUP, SPREAD, strict=True):
        centres = torch.randn(-(-m // size), d, generator=generator)
        c += spread * centres[index // size]
    c = normalize(c, dim=1)
    of_query = torch.randint(m, (n,), generator=generator)
    q = c[of_query] + torch.randn(n, d, generator=generator) * d**-0.5
    rollouts = normalize(q + torch.randn(g, n, d, generator=generator) * d**-0.5, dim=2)
    keys = torch.stack([index // size for size in GROUP], dim=1)
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


def status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def memory_of(name: str, sizes: tuple[int, int, int, int]) -> int:
    """Peak bytes over the inputs; in this process, which has done nothing else."""
    PROVIDERS[name](*inputs_of(2, 64, 1024, sizes[3]))  # libraries and their buffers are loaded
    inputs = of_provider(name, inputs_of(*sizes))
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = status("VmRSS")
    PROVIDERS[name](*inputs)
    return status("VmHWM") - before


def measured_apart(name: str, sizes: list[str]) -> int:
    command = [sys.executable, __file__, *sizes, "--memory-of", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def check(r: Tensor, c: Tensor, levels: GrainKeys) -> None:
    """On some rows: the eager way and ours agree, but for pairs that rounding exchanges."""
    some = GrainKeys(levels.tensors[0][:32], levels.tensors[1])
    found, expected = (f(r[:2, :32], c, some) for f in (concordance, eager_concordance))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rollouts", type=int, default=8, metavar="G")
    parser.add_argument("--queries", type=int, default=4096, metavar="N")
    parser.add_argument("--candidates", type=int, default=8192, metavar="M")
    parser.add_argument("--features", type=int, default=256, metavar="D")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--memory-of", choices=list(PROVIDERS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    g, n, m, d = given.rollouts, given.queries, given.candidates, given.features
    if given.memory_of is not None:
        print(memory_of(given.memory_of, (g, n, m, d)))
        return
    inputs = inputs_of(g, n, m, d)
    check(*inputs)

    one = of_provider(ONE_ROLLOUT[0], inputs)

    def providers(names: list[str], given: Inputs) -> dict[str, Callable[[], Any]]:
        return {name: lambda run=PROVIDERS[name]: run(*given) for name in names}

    fast = [name for name in PROVIDERS if name not in ONE_ROLLOUT]
    seconds = interleave(providers(fast, inputs), given.rounds)
    slow = interleave(providers(["bare products", *ONE_ROLLOUT], one), 1)
    flags = [f"--rollouts={g}", f"--queries={n}", f"--candidates={m}", f"--features={d}"]
    result: dict[str, Any] = {
        "what": "time and peak memory over the inputs, beside the bare products of all pairs",
        "machine": machine_header(),
        "G": g, "N": n, "M": m, "D": d,
        "group": GROUP,
        "input_bytes": sum(x.numel() * x.element_size() for x in inputs[:2]),
        "flops": 2 * g * n * m * d,
        "targets": {"of_bare_products": TARGET_RATIO, "peak_bytes": TARGET_MIB * 2**20},
        "providers": {},
    }  # fmt: skip
    for name in PROVIDERS:
        times = slow if name in ONE_ROLLOUT else seconds
        result["providers"][name] = {
            "rollouts": 1 if name in ONE_ROLLOUT else g,
            "seconds": times[name],
            "median_seconds": statistics.median(times[name]),
            "of_bare_products": ratio(times, name, "bare products"),
            "peak_bytes": measured_apart(name, flags),
        }
        if given.out != RESULT:
            print(name, result["providers"][name])
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
